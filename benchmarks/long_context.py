"""Behind a long text: the memory of keys and values, and decoding, beside our build of 91ad1f9, which kept float32."""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from common import IDLE, seconds
from fourbit_models import Models
from peers import Missing
from peers_earlier import Earlier
from record import Table
from sparsedraft.base.console import console
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Engine
from sparsedraft.plan import size_up

LENGTH, DECODED, PIECE = 8000, 24, 500  # tokens
TURNS = 5
SMALLER = {"int16": 0.55, "int8": 0.3}  # goals: of the bytes in float32
FASTER = 1.25  # goal: decoding behind LENGTH tokens / that of the earlier build, weights of int8 both


def measure(models: Models, threads: int, quick: bool, table: Table) -> None:
    """The rows."""
    length, turns = (1000, 1) if quick else (LENGTH, TURNS)
    whole = length * size_up(models.target).kv_bytes(4)
    engines = {}
    for cache, goal in SMALLER.items():
        engines[cache] = Engine(native_model(models.int8, cache), threads=threads)
        grown = read(engines[cache], length)
        label = f"memory of {length} tokens, {cache} keys and values"
        table.limit(label, grown / whole, goal, "of float32", bytes=grown, float32_bytes=whole)
    with ExitStack() as ends:
        earlier = None
        try:
            earlier = Earlier(models.target, models.drafter, threads)
            ends.callback(earlier.close)
        except Missing as why:
            console.print(f"left out: our int8 of 91ad1f9: {why}", soft_wrap=True, markup=False)
        ways: dict[str, Callable[[], float]] = {}
        ways |= {name: partial(decode, engine, length) for name, engine in engines.items()}
        if earlier:
            ways["91ad1f9"] = lambda: DECODED / earlier.decode(DECODED, length)
        seen: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, way in ways.items():
                time.sleep(IDLE)
                seen[name].append(way())
    rate = {name: statistics.median(rates) for name, rates in seen.items()}
    for name, rates in seen.items():
        table.note(f"decode behind {length} tokens, {name}, tokens/s", rate[name], turns=[round(r, 2) for r in rates])
    if earlier:
        ratio = rate["int16"] / rate["91ad1f9"]
        table.ratio(f"decode behind {length} tokens, int8 weights / those of 91ad1f9", ratio, FASTER)


def read(engine: Engine, length: int) -> int:
    """Bytes by which this process grows while `engine` reads so many tokens behind a piece that it has read before,
    as what a pass works with is then in memory."""
    engine.forward([7] * PIECE)
    before = resident()
    for begin in range(0, length, PIECE):
        engine.forward([7] * min(PIECE, length - begin))
    return resident() - before


def resident() -> int:
    """Bytes of this process in memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def decode(engine: Engine, length: int) -> float:
    """Tokens a second behind `length` tokens."""
    engine.rollback(length)
    return DECODED / seconds(lambda: [engine.forward([7]) for _ in range(DECODED)])
