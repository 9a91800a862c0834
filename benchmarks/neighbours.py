"""Decoding beside busy processes: what is left of the quiet machine's tokens a second.

    python benchmarks/neighbours.py [--model MODEL]

A busy process computes without a pause. One of the same shell shares its part of the CPU's time with us; one in a
session of its own ("setsid") has a part of its own, where Linux shares by session. Five turns of all cases, medians;
some minutes, after the model was packed once.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from common import CACHE, MODEL, parser, run, seconds
from fourbit_models import DRAFTER, packed
from record import Table
from sparsedraft.base.places import slug
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Engine

BUSY = "import os; ours = os.getppid()\nwhile os.getppid() == ours: pass"  # it ends when this process does
SETTLED = 0.5  # seconds until a neighbour computes, and we have noticed
# (neighbours, each in a session of its own): what is to be left of the quiet machine's speed
CASES = {(1, False): 0.6, (1, True): 0.6, (2, False): 0.42, (2, True): 0.42}


@contextmanager
def busy(processes: int, apart: bool) -> Iterator[None]:
    """So many processes compute meanwhile, each in a session of its own or all in ours."""
    command = [sys.executable, "-c", BUSY]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes):
            running.append(subprocess.Popen(command, start_new_session=apart))
        time.sleep(SETTLED)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def label(processes: int, apart: bool) -> str:
    return f"{processes} busy, {'by setsid' if apart else 'same shell'}"


def decode(engine: Engine, tokens: int) -> float:
    """Tokens a second from an empty context."""
    engine.rollback(0)
    return tokens / seconds(lambda: [engine.forward([7]) for _ in range(tokens)])


def work(options: argparse.Namespace, table: Table) -> None:
    model = options.model or (MODEL if options.quick else DRAFTER)
    folder = CACHE / "neighbours" / slug(model.replace("/", "-"))
    handle = native_model(packed(model, folder, "--weights", "int8"))
    turns, tokens = (1, 64) if options.quick else (5, 96)
    engines = {count: Engine(handle, threads=count) for count in sorted({1, options.threads})}
    share: dict[tuple[int, bool], list[float]] = {case: [] for case in CASES}
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(turns):
        quiet = measure_all(engines, tokens, "quiet", rates)
        for case in CASES:
            with busy(*case):
                share[case].append(measure_all(engines, tokens, label(*case), rates) / quiet)
    for (name, count), seen in rates.items():
        table.note(f"{name}, threads {count}, tokens/s", statistics.median(seen), low=min(seen), high=max(seen))
    for case, goal in CASES.items():
        low, high = min(share[case]), max(share[case])
        table.ratio(f"{label(*case)} / quiet", statistics.median(share[case]), goal, low=low, high=high)
    if os.cpu_count() != 2:
        table.note("cores of this machine, where the goals are for 2", float(os.cpu_count() or 0))


def measure_all(engines: dict[int, Engine], tokens: int, name: str, rates: dict[tuple[str, int], list[float]]) -> float:
    """The rate of the engine with the most threads; those of all are added to `rates`."""
    for count, engine in engines.items():
        rates.setdefault((name, count), []).append(decode(engine, tokens))
    return rates[name, max(engines)][-1]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", help=f"default: {DRAFTER}, in a quick check {MODEL}")
    run("neighbours", arguments.parse_args(), work)


if __name__ == "__main__":
    main()
