"""What the benchmarks share: the model, a stopwatch, and the closing line."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sparsedraft.base.console import console, quiet_libraries

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROOT = Path(__file__).parent.parent
GIB = 2**30

# A child counts the memory of the process that started it until its own program begins, so a large parent would pass
# for a large child: a small process stands between the two.
_BETWEEN = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-c", "from sparsedraft.cli import main; main()", *sys.argv[1:]],
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


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measured(*arguments: str | Path, env: Mapping[str, str] | None = None) -> tuple[dict[str, Any], float]:
    """(closing JSON, peak resident GiB) of the command `sparsedraft ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-c", _BETWEEN, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    result, peak = done.stdout.splitlines()
    return json.loads(result), int(peak) / GIB


def row(name: str, value: float, goal: float, unit: str = "x", better: str = "more", **details: Any) -> dict[str, Any]:
    """One line of the table; printed, and returned for the closing JSON."""
    met = value >= goal if better == "more" else value <= goal
    sign = "at least" if better == "more" else "at most"
    console.print(f"{name}: {value:.2f} {unit} (goal: {sign} {goal:g}) {'met' if met else 'NOT MET'} {details or ''}")
    return {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "met": met, **details}


def close(rows: list[dict[str, Any]]) -> None:
    """The last line on stdout."""
    hardware = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({"hardware": hardware, "rows": rows}), flush=True)
