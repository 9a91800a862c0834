"""The int4 target alone beside 4-bit and 8-bit files of its peers: decoding, reading prompts, verifying drafts."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from common import IDLE, seconds
from fourbit_models import Models
from peers_earlier import Earlier
from peers_llama import Llama
from record import Table
from sparsedraft.base.console import console
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Engine

DECODED = 64  # tokens, from an empty context: as llama-bench decodes
PROMPTS = (512, 3000)  # tokens that are read
FILES = ("Q4_0", "Q4_K_M", "Q8_0")
NEAR = 0.7  # of the fastest peer's rate in the first turn: what is slower is not timed again
CONTEXT, STEPS = 64, 16  # tokens before drafts that are verified, and how many times they are

Turn = Callable[[list[int]], dict[str, float]]  # prompts' lengths to tokens a second, of those and of "decode"


@dataclass
class Row:
    """One configuration: how a turn is measured, the bytes of its weights, and tokens a second, turn by turn."""

    turn: Turn
    bytes: int
    seen: dict[str, list[float]] = field(default_factory=dict)

    def rate(self, what: str) -> float:
        """The median of the turns."""
        return statistics.median(self.seen[what])

    @property
    def bandwidth(self) -> float:
        """Bytes of weights a second of decoding."""
        return self.bytes * self.rate("decode")


def own_turn(engine: Engine, prompts: list[int]) -> dict[str, float]:
    """Tokens a second of this engine."""

    def clocked(work: Callable[[], object]) -> float:
        engine.rollback(0)
        time.sleep(IDLE)
        return seconds(work)

    rates = {str(count): count / clocked(partial(engine.forward, [7] * count)) for count in prompts}
    rates["decode"] = DECODED / clocked(lambda: [engine.forward([7]) for _ in range(DECODED)])
    return rates


def earlier_turn(earlier: Earlier, prompts: list[int]) -> dict[str, float]:
    """The same of our earlier build."""
    return {str(count): count / earlier.read(count) for count in prompts} | {
        "decode": DECODED / earlier.decode(DECODED)
    }


def peer_turn(llama: Llama, file: Path, threads: int, prompts: list[int]) -> dict[str, float]:
    """The same of llama-bench."""
    return llama.rates(file, threads, prompts, DECODED)


def configurations(
    models: Models, peers: Mapping[str, Llama], files: Mapping[str, Path], earlier: Earlier | None, threads: int
) -> dict[str, Row]:
    """All that take turns: ours, our earlier build, and each peer's with each file."""
    rows = {}
    for name, folder in (("int4", models.int4), ("int8", models.int8)):
        engine = Engine(native_model(folder), threads=threads)
        engine.forward([7] * 32)  # warm-up
        rows[name] = Row(partial(own_turn, engine), engine.model.handle.bytes)
    if earlier:
        earlier.read(32)
        rows["int8 of 91ad1f9"] = Row(partial(earlier_turn, earlier), earlier.bytes)
    for name, llama in peers.items():
        for kind, file in files.items():
            rows[f"{name} {kind}"] = Row(partial(peer_turn, llama, file, threads), file.stat().st_size)
    return rows


def take_turns(rows: Mapping[str, Row], prompts: tuple[int, ...], turns: int, keep: Callable[[object], None]) -> None:
    """Measure every configuration `turns` times, one after the other; `keep` gets all that was seen so far."""
    slow: set[tuple[str, int]] = set()  # (peer, tokens) that the maximum over peers does not need any more
    for turn in range(turns):
        for name, row in rows.items():
            console.print(f"turn {turn + 1} of {turns}: {name}", style="dim", markup=False)
            wanted = [count for count in prompts if (name, count) not in slow]
            for what, rate in row.turn(wanted).items():
                row.seen.setdefault(what, []).append(rate)
            keep({name: row.seen for name, row in rows.items()})
        for count in prompts:
            first = {name: row.seen[str(count)][0] for name, row in rows.items() if "llama" in name}
            slow |= {(name, count) for name, rate in first.items() if rate < NEAR * max(first.values())}


def fast(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Those that decode nearly as fast as the fastest."""
    most = max(row.rate("decode") for row in rows.values())
    return {name: row for name, row in rows.items() if row.rate("decode") >= NEAR * most}


def compare(rows: Mapping[str, Row], prompts: tuple[int, ...], limit: float, table: Table) -> None:
    """The rows of decoding and reading; `limit`: bytes a second of a streaming read."""
    ours, earlier = rows["int4"], rows.get("int8 of 91ad1f9", rows["int8"])
    label = "own int8 of 91ad1f9" if "int8 of 91ad1f9" in rows else "own int8 of this build"
    for name, row in rows.items():
        spans = {what: [round(min(seen), 1), round(max(seen), 1)] for what, seen in row.seen.items()}
        reads = {f"read_{count}": round(row.rate(str(count)), 1) for count in prompts}
        shares = {"gb_per_second": round(row.bandwidth / 1e9, 2), "of_roof": round(row.bandwidth / limit, 3)}
        table.note(f"decode, {name}, tokens/s", row.rate("decode"), **reads, **shares, bytes=row.bytes, spans=spans)
    four = {name: row.rate("decode") for name, row in rows.items() if "llama" in name and "Q4" in name}
    if four:
        best = max(four, key=lambda name: four[name])
        table.ratio("decode, int4 target / theirs", ours.rate("decode") / four[best], 1.05, theirs=best)
    widest = max(rows, key=lambda name: rows[name].bandwidth)
    share = ours.bandwidth / rows[widest].bandwidth
    table.ratio("decode, int4 target: share of the widest row's bandwidth", share, 0.9, widest=widest)
    table.ratio(f"decode, int4 target / {label}", ours.rate("decode") / earlier.rate("decode"), 1.5)
    for count in map(str, prompts):
        theirs = {name: row.rate(count) for name, row in rows.items() if "llama" in name}
        if theirs:
            best = max(theirs, key=lambda name: theirs[name])
            table.ratio(f"read {count} tokens, int4 target / theirs", ours.rate(count) / theirs[best], 1.4, theirs=best)
        table.ratio(f"read {count} tokens, int4 target / {label}", ours.rate(count) / earlier.rate(count), 1.7)
        if earlier is not rows["int8"]:
            value = rows["int8"].rate(count) / earlier.rate(count)
            table.ratio(f"read {count} tokens, int8 target / {label}", value, 1.6)
    short, long = (ours.rate(str(count)) for count in prompts)
    table.ratio(f"read {prompts[1]} / {prompts[0]} tokens, int4 target, tokens/s", long / short, 0.85)


def verify(models: Models, threads: int, turns: int, table: Table) -> None:
    """v(K) of the int4 target: a pass over K + 1 tokens against one over one token, both after CONTEXT."""
    engine = Engine(native_model(models.int4), threads=threads)
    engine.forward([7] * CONTEXT)

    def taken(tokens: int) -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            engine.forward([7] * tokens, tokens)
            engine.rollback(CONTEXT)
        return (time.perf_counter() - start) / STEPS

    seen: dict[int, list[float]] = {}
    taken(1)  # warm-up
    for _ in range(turns):
        one = taken(1)
        for tokens in (2, 4, 5, 8, 9):
            seen.setdefault(tokens, []).append(taken(tokens) / one)
    for k, limit in ((4, 1.25), (8, 1.9)):
        table.limit(f"v({k}) of the int4 target: {k + 1} tokens / 1", statistics.median(seen[k + 1]), limit, "x")
    for tokens in (2, 4, 8):
        table.note(f"int4 target: {tokens} tokens / 1", statistics.median(seen[tokens]))
