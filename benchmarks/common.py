"""What the benchmarks share: the model, a stopwatch, and the closing line."""

import json
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from sparsedraft.console import console, quiet_libraries

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


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
