"""How the drafters of a run compare, prompt by prompt: with the layer-pruned one, and with the dense one."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sparsedraft.stages.evaluate.evaluation import ROWS
from sparsedraft.stages.evaluate.summary import mal_against
from sparsedraft.stages.evaluate.timing import end_to_end_against, speedup_against
from sparsedraft.stages.report.tables import markdown, middle_k
from stored import CLAIMS, CUT, REFERENCE, Rows, best_measured, by_drafter, figure, further_timings, mean_tokens, read


def claims(run: Path, result: dict[str, Any], timing: dict[str, Any] | None) -> list[str]:
    """The paper's comparisons, prompt by prompt, from the run's rows or as `keep` has stored them.

    MAL at K = 5 or the middle one; speed-ups at each drafter's best K, whose intervals ignore that it was chosen.
    """
    if (run / CLAIMS).is_file():
        return list(json.loads((run / CLAIMS).read_text(encoding="utf-8")))
    k = middle_k(result)
    if not (run / "eval" / ROWS).is_file():
        return []
    parts = {part: evaluation for part in ("eval", "sampled", "packed-eval") if (evaluation := read(run, part))}
    evaluated = {part: by_drafter(run / part) for part in parts}
    columns: dict[str, Callable[[str], str]] = {}
    if CUT in evaluated["eval"]:
        columns[f"MAL / {CUT}'s"] = lambda name: figure(*_mal(evaluated["eval"], CUT, k, name))
    for part, label in (("eval", "MAL"), ("sampled", "MAL, sampled"), ("packed-eval", "MAL, packed")):
        if REFERENCE in evaluated.get(part, {}):
            columns[f"{label} / {REFERENCE}'s"] = partial(_loss, evaluated[part], REFERENCE, middle_k(parts[part]))
    if timing:
        columns |= _speeds(run / "speed", timing)
    names = [name for name in evaluated["eval"] if name != REFERENCE]
    rows = [[name, *(cell(name) for cell in columns.values())] for name in names]
    of_speed = ", speed-up at each drafter's best K" if timing else ""
    paragraphs = [
        f"Prompt by prompt, MAL at K={k}{of_speed}:",
        markdown(["drafter", *columns], rows),
    ]
    for folder, other in further_timings(run).items():
        speeds = _speeds(folder, other)
        cells = [[d["name"], *(cell(d["name"]) for cell in speeds.values())] for d in other["drafters"]]
        if speeds:
            paragraphs += [
                f"The same of the answers of {mean_tokens(other):.0f} tokens:",
                markdown(["drafter", *speeds], cells),
            ]
    return paragraphs


def _speeds(evaluation: Path, timing: dict[str, Any]) -> dict[str, Callable[[str], str]]:
    """Columns of a table: how many times the dense drafter's speed-up, each at its best K."""
    best = {d["name"]: best_measured(d)[0] for d in timing["drafters"]}
    if REFERENCE not in best:
        return {}
    loops = by_drafter(evaluation)
    dense = loops[REFERENCE], best[REFERENCE]

    def cell(against: Callable[..., tuple[float, list[float]]], name: str) -> str:
        """A dash for a drafter that is evaluated and not timed yet."""
        return figure(*against(loops[name], best[name], *dense)) if name in best else "-"

    columns: dict[str, Callable[[str], str]] = {f"speed-up / {REFERENCE}'s": partial(cell, speedup_against)}
    if all("reading" in row for rows in loops.values() for row in rows):
        columns[f"with the prompt / {REFERENCE}'s"] = partial(cell, end_to_end_against)
    return columns


def _mal(rows: Rows, other: str, k: int, name: str) -> tuple[float, list[float]]:
    return mal_against(rows[name], rows[other], k)


def _loss(rows: Rows, other: str, k: int, name: str) -> str:
    """A dash for a drafter that this part has not evaluated yet."""
    if name not in rows:
        return "-"
    ratio, interval = _mal(rows, other, k, name)
    within = " to ".join(f"{end - 1:+.1%}" for end in interval)
    return f"{ratio - 1:+.1%}" + (f" ({within})" if within else "")
