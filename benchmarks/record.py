"""The rows of a benchmark, and its record under version control: benchmarks/results/NAME-MACHINE-DATE.json.

A row's ratio is better when it is larger, and its goal is reached at ratio >= goal; an upper limit stands there as
limit / seen, with the goal 1. `figures` hold what was measured beside the rows: by the name of a row or of themselves.
"""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sparsedraft.base.console import console
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.base.places import slug
from sparsedraft.native import extension

RESULTS = Path(__file__).parent / "results"
EXTENSIONS = (  # of CPUs, as Linux names them: those that our kernels or torch's make use of
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


class Table:
    """The rows and figures of one run of the benchmark `name`; each is printed as it comes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[dict[str, Any]] = []
        self.figures: dict[str, Any] = {}

    def ratio(self, name: str, ratio: float, goal: float, **figures: Any) -> None:
        """A ratio that is to be at least `goal`."""
        self._print(name, f"{ratio:.2f} (goal: at least {goal:g}) {'met' if ratio >= goal else 'NOT MET'}", figures)
        self._add(name, ratio, goal, figures)

    def limit(self, name: str, seen: float, limit: float, unit: str = "", **figures: Any) -> None:
        """A figure that is to be at most `limit`: the row's ratio is limit / seen and its goal 1."""
        ratio = limit / seen if seen > 0 else float(limit > 0 or seen == 0) * 1000
        met = "met" if ratio >= 1 else "NOT MET"
        self._print(name, f"{seen:.2f} {unit} (goal: at most {limit:g}) {met}", figures)
        self._add(name, ratio, 1, {"seen": round(seen, 4), "limit": limit, "unit": unit, **figures})

    def note(self, name: str, value: float, **figures: Any) -> None:
        """A figure without a goal."""
        self._print(name, f"{value:.2f}", figures)
        self.figures[name] = {"value": round(value, 4), **figures}

    def _print(self, name: str, text: str, figures: dict[str, Any]) -> None:
        console.print(f"{name}: {text} {figures or ''}", soft_wrap=True, markup=False)

    def _add(self, name: str, ratio: float, goal: float, figures: dict[str, Any]) -> None:
        self.rows.append({"name": name, "ratio": round(ratio, 3), "goal": goal})
        if figures:
            self.figures[name] = figures

    def write(self, threads: int) -> None:
        """Write the record."""
        host = machine(threads)
        date = datetime.now(UTC).date().isoformat()
        record = {
            "benchmark": self.name,
            "command": " ".join(["python", os.path.relpath(sys.argv[0], Path(__file__).parent.parent), *sys.argv[1:]]),
            "machine": host,
            "date": date,
            "commit": commit(),
            "rows": self.rows,
            "figures": self.figures,
        }
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{self.name}-{slug(host['cpu'].replace(' ', '-').lower())}-{date}.json"
        write_json(file, record)
        console.print(f"record: {file}", soft_wrap=True)

    def close(self) -> None:
        """The last line on stdout."""
        print(json.dumps({"rows": self.rows}), flush=True)


def machine(threads: int) -> dict[str, Any]:
    """What a figure of speed depends on: the CPU, its extensions, its cores, torch and its threads."""
    cpu, flags = _cpu()
    return {
        "cpu": cpu,
        "extensions": [name for name in EXTENSIONS if name in flags],
        "kernels": extension.fastest(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "torch": torch.__version__,
        "threads": threads,
    }


def _cpu() -> tuple[str, set[str]]:
    """(model, flags) of the CPU; the model is the platform's word for it where Linux's /proc is not there."""
    facts: dict[str, str] = {}
    file = Path("/proc/cpuinfo")
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    model = facts.get("model name") or platform.processor() or platform.machine()
    return model, set((facts.get("flags") or facts.get("Features") or "").split())


def commit() -> str | None:
    """The commit of this checkout, with "+changes" where it is not what is committed; None outside of git."""
    describe = ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
