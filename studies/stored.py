"""What lies in the folder of a run, or of its kept results, and how a figure is written."""

import json
import sys
from pathlib import Path
from typing import Any

from sparsedraft.stages.evaluate.evaluation import ROWS
from sparsedraft.stages.report.older import OPTIONAL, expected_parts

REFERENCE, CUT = "dense", "layer-pruned+distilled"
CLAIMS = "claims.json"  # of a run whose rows are elsewhere
Rows = dict[str, list[dict[str, Any]]]  # of an evaluation, by drafter


def read(run: Path, part: str) -> dict[str, Any] | None:
    """The result of a part of the run; None where there is none, or where the recipe does not ask for it any more."""
    file = run / part / "result.json"
    if not file.is_file() or (part in OPTIONAL and part not in expected_parts(run)):
        return None
    return json.loads(file.read_text(encoding="utf-8"))


def timings(run: Path) -> dict[str, Any] | None:
    """The evaluation that was timed."""
    timing = read(run, "speed")
    return timing if timing and measured(timing) else None


def further_timings(run: Path) -> dict[Path, dict[str, Any]]:
    """Further timings of the run's drafters, by their folders: those of `sparsedraft eval` that are called speed-*."""
    results = {f.parent: json.loads(f.read_text(encoding="utf-8")) for f in sorted(run.glob("speed-*/result.json"))}
    return {folder: result for folder, result in results.items() if measured(result)}


def measured(evaluation: dict[str, Any]) -> bool:
    """Whether its loops were timed: not by simulation, nor where every answer ended with its first step."""
    figures = [k.get("measured") for d in evaluation["drafters"] for k in d["k"].values()]
    return bool(figures) and all(figures)


def by_drafter(evaluation: Path) -> Rows:
    """The rows of an evaluation. Ends the command where they were not kept."""
    file = evaluation / ROWS
    if not file.is_file():
        sys.exit(f"{file} is missing, and {evaluation.parent} has no {CLAIMS}: give the run itself, or keep it again.")
    rows: Rows = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.setdefault(row["drafter"], []).append(row)
    return rows


def best_measured(drafter: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(K or policy, what was measured at it) where a timed drafter was the fastest."""
    k = max(drafter["k"], key=lambda k: drafter["k"][k]["measured"].get("speedup", 0))
    return k, drafter["k"][k]["measured"]


def mean_tokens(timing: dict[str, Any]) -> float:
    """The length of an answer."""
    return float(timing["target_tokens"] / timing["sequences"])


def figure(value: float, interval: list[float], digits: int = 2) -> str:
    """The value, and its interval if there is one: a single prompt has none."""
    return f"{value:.{digits}f}" + (f" ({interval[0]:.{digits}f}-{interval[1]:.{digits}f})" if interval else "")
