"""Whole answers: the int4 pair, our int4 target alone, our earlier int8 pair, and peers with and without a drafter.

What has a choice (our drafter and K; their file and K) is chosen before, on prompts of their own.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from peers_llama import Llama
from peers_server import Server
from record import Table
from sparsedraft.base.console import console
from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.writers.loaded import LoadedModel
from whole_answers import Keep, Own, Task, Way, best, leaving_out, ratio, speeds, take_turns

KS = (2, 4, 8)  # of the peers, tokens drafted a step
NEAR = 0.7  # of the best peer's rate on those prompts: what is slower is not the best on the others


def own_ways(target_folder: Path, drafters: Mapping[str, Path], kind: str) -> dict[str, Way]:
    """Our packed target alone, and with each drafter under each policy."""
    target = LoadedModel.load(target_folder, runtime="native")
    ways: dict[str, Way] = {f"{kind} alone": Own(Pair.of(target, None, "auto", Sampling()), Constant(0))}
    for name, folder in drafters.items():
        pair = Pair.of(target, LoadedModel.load(folder, runtime="native"), "auto", Sampling())
        policies: dict[str, Policy] = {"auto": policy_named("auto"), **{str(k): Constant(k) for k in (2, 3, 4)}}
        ways |= {f"{kind}, {name} drafter, K={k}": Own(pair, policy) for k, policy in policies.items()}
    return ways


def peer_starts(
    peers: Mapping[str, Llama], files: Mapping[str, tuple[Path, Path]], threads: int
) -> dict[str, Callable[[], Server]]:
    """How each peer's server starts, by file, alone and with the drafter and K; `files`: (target, drafter) by kind."""
    starts: dict[str, Callable[[], Server]] = {}
    for name, llama in peers.items():
        for kind, (target, drafter) in files.items():
            starts[f"{name} {kind} alone"] = partial(Server, llama, target, threads)
            for k in KS:
                starts[f"{name} {kind} K={k}"] = partial(Server, llama, target, threads, drafter, k)
    return starts


def chosen_peers(starts: Mapping[str, Callable[[], Server]], task: Task, keep: Keep) -> list[str]:
    """Of each peer: the file that answers fastest alone, and the file and K that do with a drafter; near the best only.

    One server runs at a time, since K is said as it starts.
    """
    rows: list[dict[str, Any]] = []
    for name, start in starts.items():
        console.print(f"choosing: {name}", style="dim", markup=False)
        with leaving_out(name), closing(start()) as server:
            rows += take_turns({name: server.answer}, task.choosing, task.short, lambda _: None)
            keep(rows)
    return nearest(speeds(rows))


def nearest(speed: Mapping[str, float]) -> list[str]:
    """The fastest way of each peer alone and with a drafter, but for what is far behind the fastest of all."""
    groups: dict[tuple[str, bool], str] = {}
    for name, rate in speed.items():
        group = name.split()[0], name.endswith("alone")
        if rate > speed.get(groups.get(group, ""), 0.0):
            groups[group] = name
    return [name for name in groups.values() if speed[name] >= NEAR * max(speed.values())]


def chosen_own(ways: Mapping[str, Way], task: Task, keep: Keep) -> tuple[str, list[str]]:
    """(the fastest of our pairs, the fastest K of each drafter)."""
    speed = speeds(take_turns(ways, task.choosing, task.short, keep))
    drafting = {name: rate for name, rate in speed.items() if not name.endswith("alone")}
    kinds = {name.rpartition(", K=")[0] for name in drafting}
    return best(drafting, ""), sorted(best(drafting, kind) for kind in kinds)


def measure(ways: Mapping[str, Way], pair: str, task: Task, keep: Keep, table: Table) -> None:
    """The rows of whole answers: `pair` against all other `ways`."""
    rows = take_turns(ways, task.measured, task.tokens, keep)
    speed = speeds(rows)
    for name in ways:
        mine = [row for row in rows if row["way"] == name]
        tokens, kept = (sum(row[key] for row in mine) for key in ("tokens", "accepted"))
        figures = {"tokens": tokens, "mal": round(tokens / (tokens - kept), 2)}
        table.note(f"whole answers, {name}, tokens/s", speed[name], **figures)

    def compare(label: str, other: str, goal: float) -> None:
        value, span = ratio(rows, pair, other)
        figures = {"pair": pair, "other": other, "interval": [round(end, 3) for end in span]}
        table.ratio(f"whole answers, int4 pair / {label}", value, goal, **figures)

    if any("llama" in name for name in ways):
        compare("theirs at 4 bits", best({name: rate for name, rate in speed.items() if "llama" in name}, ""), 1.25)
    old = best(speed, "int8")
    compare("own int8 pair of 91ad1f9" if "91ad1f9" in old else "own int8 pair of this build", old, 1.6)
    compare("own int4 target alone", "int4 alone", 1.1)
