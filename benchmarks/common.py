"""What the benchmarks share: the cache folder, stopwatches, commands in their own processes, and the command line."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from record import Table
from sparsedraft.base.console import quiet_libraries
from sparsedraft.base.errors import UserError
from sparsedraft.models.sources import cache_folder

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROOT = Path(__file__).parent.parent
CACHE = cache_folder() / "bench"  # models, data and peers that the benchmarks make for themselves
GIB = 2**30
IDLE = 0.3  # seconds until torch's idle OpenMP threads have fallen asleep; awake they slow down what is timed next

Stopwatch = Callable[[], float]  # one measurement, in seconds

# A child counts the memory of the process that started it until its own program begins, so a large parent would pass
# for a large child: a small process stands between the two.
_BETWEEN = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-c", *sys.argv[1:]],
                      stdout=subprocess.PIPE, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print((done.stdout.splitlines() or [""])[-1])
print(peak * (1 if sys.platform == "darwin" else 1024))
sys.exit(done.returncode)
"""


def setup(threads: int = 2) -> None:
    """The same conditions for every benchmark."""
    quiet_libraries()
    torch.set_num_threads(threads)
    torch.manual_seed(0)


def parser(description: str | None, threads: int = 2) -> argparse.ArgumentParser:
    """The command line that all benchmarks share; each adds its own options."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument(
        "--quick", action="store_true", help="minutes: the smallest model, few repetitions, a check only"
    )
    found.add_argument("--record", action="store_true", help="also write the result to benchmarks/results")
    found.add_argument("--threads", type=int, default=threads)
    return found


def run(name: str, options: argparse.Namespace, work: Callable[[argparse.Namespace, Table], None]) -> None:
    """Run the benchmark `name`; the last line on stdout is its rows, {"rows": [{"name", "ratio", "goal"}, ...]}."""
    if options.quick and options.record:
        sys.exit("error: --quick is a check whose figures mean nothing: leave out --record.")
    setup(options.threads)
    table = Table(name)
    try:
        work(options, table)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if options.record:
        table.write(options.threads)
    table.close()


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def torch_seconds(work: Callable[[], Any]) -> float:
    """Wall time of torch's `work`, and a pause after it that is not counted: see IDLE."""
    taken = seconds(work)
    time.sleep(IDLE)
    return taken


def against(subject: Stopwatch, others: list[Stopwatch], repeat: int = 7) -> tuple[float, list[float]]:
    """(median seconds of `subject`, median ratio of each other's seconds to it); measured in turns, `repeat` times."""
    for watch in (subject, *others):
        watch()  # warm-up
    times: list[float] = []
    ratios: list[list[float]] = [[] for _ in others]
    for _ in range(repeat):
        times.append(subject())
        for watch, column in zip(others, ratios, strict=True):
            column.append(watch() / times[-1])
    return statistics.median(times), [statistics.median(column) for column in ratios]


def measured(*arguments: str | Path, env: Mapping[str, str] | None = None) -> tuple[dict[str, Any], float]:
    """(closing JSON, peak resident GiB) of `sparsedraft ARGUMENTS` in its own process. UserError where it fails."""
    return peak_of(f"sparsedraft {arguments[0]}", "from sparsedraft.cli import main; main()", *arguments, env=env)


def peak_of(
    what: str, code: str, *arguments: str | Path, env: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], float]:
    """The same of Python `code` whose sys.argv[1:] are the `arguments`; `what` it is in the error's sentence."""
    command = [sys.executable, "-c", _BETWEEN, code, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=env)
    if done.returncode:
        raise UserError(f"{what} failed: its sentence stands above.")
    result, peak = done.stdout.splitlines()
    return json.loads(result), int(peak) / GIB
