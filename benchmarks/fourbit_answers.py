"""Whole answers: the int4 pair, our int4 target alone, our earlier int8 pair, and peers with and without a drafter.

Every configuration answers a prompt before the next prompt comes. What has a choice (our drafter and K; their file and
K) is chosen before, on prompts of their own.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import IDLE
from peers import Missing
from peers_llama import Llama
from peers_server import Answer, Server
from record import Table
from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.tokenizers import templates
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.stages.evaluate.bootstrap import ratio_interval, resampled
from sparsedraft.text import prompts
from sparsedraft.writers.loaded import LoadedModel

CHOOSING, SHORT = 4, 96  # prompts on which drafters and K are chosen, and tokens of their answers
KS = (2, 4, 8)  # of the peers, tokens drafted a step
NEAR = 0.7  # of the best peer's rate on those prompts: what is slower is not the best on the others

Way = Callable[[list[int], int], Answer]  # one way to answer a prompt's ids, in so many tokens at most
Keep = Callable[[list[dict[str, Any]]], None]  # gets all rows so far


@dataclass(frozen=True)
class Task:
    """The prompts' ids, to measure on and to choose on, and the most tokens of an answer."""

    measured: list[list[int]]
    choosing: list[list[int]]
    tokens: int
    short: int  # the same where something is chosen

    @classmethod
    def of(cls, source: str, count: int, tokens: int, tokenizer: Any) -> "Task":
        """`count` prompts of `source` at equal distances; those of the choice are others, of `demo:eval`."""
        chosen = prompts.spread(prompts.read(source), count)
        names = {prompt.turns[0] for prompt in chosen}
        others = [prompt for prompt in prompts.read("demo:eval") if prompt.turns[0] not in names]
        if not others:
            raise UserError(f"--limit {count} leaves no prompt of demo:eval to choose on: lower it, or give --prompts.")
        few = prompts.spread(others, min(CHOOSING, count))
        ids = [[templates.chat_ids(tokenizer, prompt.messages()) for prompt in each] for each in (chosen, few)]
        return cls(ids[0], ids[1], tokens, min(SHORT, tokens))


def own_ways(target_folder: Path, drafters: Mapping[str, Path], kind: str) -> dict[str, Way]:
    """Our packed target alone, and with each drafter under each policy."""
    target = LoadedModel.load(target_folder, runtime="native")

    def answer(pair: Pair, policy: Policy, ids: list[int], tokens: int) -> Answer:
        start = time.perf_counter()
        text = generate(pair.decoder([pair.prompt_pair(ids)], policy, Sampling()), ids, tokens)
        taken, steps = time.perf_counter() - start, text.steps
        drafted, accepted = sum(len(step.drafted) for step in steps), sum(step.accepted for step in steps)
        return Answer(len(text.tokens), taken, drafted, accepted)

    ways: dict[str, Way] = {f"{kind} alone": partial(answer, Pair.of(target, None, "auto", Sampling()), Constant(0))}
    for name, folder in drafters.items():
        pair = Pair.of(target, LoadedModel.load(folder, runtime="native"), "auto", Sampling())
        policies: dict[str, Policy] = {"auto": policy_named("auto"), **{str(k): Constant(k) for k in (2, 3, 4)}}
        ways |= {f"{kind}, {name} drafter, K={k}": partial(answer, pair, policy) for k, policy in policies.items()}
    return ways


def take_turns(ways: Mapping[str, Way], asked: Sequence[list[int]], tokens: int, keep: Keep) -> list[dict[str, Any]]:
    """A row by prompt and way, {"prompt", "way", "tokens", "seconds", ...}; `keep` gets all rows after each prompt."""
    rows: list[dict[str, Any]] = []
    for number, ids in enumerate(asked):
        console.print(f"prompt {number + 1} of {len(asked)}", style="dim")
        for name, way in ways.items():
            time.sleep(IDLE)
            rows.append({"prompt": number, "way": name, **asdict(way(ids, tokens))})
        keep(rows)
    return rows


def speeds(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Tokens a second of each way, over all its prompts."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        total = sums.setdefault(row["way"], [0.0, 0.0])
        total[0], total[1] = total[0] + row["tokens"], total[1] + row["seconds"]
    return {name: tokens / seconds for name, (tokens, seconds) in sums.items()}


def best(speed: Mapping[str, float], kind: str) -> str:
    """The fastest way whose name begins so."""
    return max((name for name in speed if name.startswith(kind)), key=lambda name: speed[name])


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


@contextmanager
def leaving_out(name: str) -> Iterator[None]:
    """Go on without what is missing, and say so."""
    try:
        yield
    except Missing as why:
        console.print(f"left out: {name}: {why}", soft_wrap=True, markup=False)


def chosen_own(ways: Mapping[str, Way], task: Task, keep: Keep) -> tuple[str, list[str]]:
    """(the fastest of our pairs, the fastest K of each drafter)."""
    speed = speeds(take_turns(ways, task.choosing, task.short, keep))
    drafting = {name: rate for name, rate in speed.items() if not name.endswith("alone")}
    kinds = {name.rpartition(", K=")[0] for name in drafting}
    return best(drafting, ""), sorted(best(drafting, kind) for kind in kinds)


def ratio(rows: Sequence[Mapping[str, Any]], name: str, other: str) -> tuple[float, list[float]]:
    """(tokens a second of the way `name` / those of `other`, the 95 % interval over prompts)."""
    columns = [("tokens", name), ("seconds", name), ("tokens", other), ("seconds", other)]
    picks = [lambda row, key=key, way=way: row[key] * (row["way"] == way) for key, way in columns]
    a, a_seconds, b, b_seconds = resampled([dict(row) for row in rows], *picks)
    speed = speeds(rows)
    value = speed[name] / speed[other]
    return value, ratio_interval(value, (a / a_seconds) / (b / b_seconds), len({row["prompt"] for row in rows}))


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
