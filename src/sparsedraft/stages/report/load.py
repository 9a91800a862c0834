"""Read what a run left on disk."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from sparsedraft.base.errors import UserError, first_line
from sparsedraft.base.jsonfiles import read_as, read_object
from sparsedraft.stages.report import older
from sparsedraft.stages.report.manifest import NAME, Artifact, Manifest
from sparsedraft.stages.report.manifest import Drafter as DrafterStages

AGAIN = "make it again"  # the mend of a damaged file


class Drafter(BaseModel):
    """What every page shows of a drafter; more may be there."""

    model_config = ConfigDict(extra="allow")

    name: str
    path: str
    k: dict[str, dict[str, Any]]
    alpha: float


class Evaluated(BaseModel):
    """What every page shows of an evaluation; more may be there."""

    model_config = ConfigDict(extra="allow")

    target: str
    temperature: float
    simulated: bool
    prompts: int
    target_tokens: int
    k: list[int]
    drafters: list[Drafter]


class Provenance(BaseModel):
    """How an artifact came to be, as far as it is shown; more may be there."""

    model_config = ConfigDict(extra="allow")

    command: str
    inputs: Any = None


@dataclass
class Run:
    """Everything that the report shows; optional parts are empty where the run has none."""

    folder: Path
    manifest: Manifest
    result: dict[str, Any]
    example: dict[str, Any] | None = None
    distilled: dict[str, Any] | None = None
    sampled: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None
    packed_eval: dict[str, Any] | None = None
    packed: dict[str, dict[str, Any]] = field(default_factory=dict)  # results of `pack` by drafter
    drafting: dict[str, dict[str, Any]] = field(default_factory=dict)  # a drafter's own temperature, where fitted
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # log.jsonl by drafter
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)  # by artifact, relative to the run
    recipe: str = ""
    sources: list[Path] = field(default_factory=list)  # files that the report follows from


def load(folder: Path) -> Run:
    """The run in `folder`; UserError if it has no finished evaluation."""
    file = folder / "eval" / "result.json"
    if not file.is_file():
        raise UserError(
            f"{folder} is not the folder of a finished run (it lacks eval/result.json): give a run's --out."
        )
    result = read_as(file, Evaluated, AGAIN).model_dump(exclude_unset=True)
    manifest = manifest_of(folder, result)
    run = Run(folder, manifest, result, sources=[file])
    if (folder / NAME).is_file():
        run.sources.append(folder / NAME)
    parts = manifest.parts
    run.example = _json(run, parts.get("eval"), "example")
    run.distilled, run.sampled, run.speed, run.packed_eval = (
        _json(run, parts.get(part), "result") for part in ("distilled", "sampled", "speed", "packed-eval")
    )
    run.packed = {d.name: sizes for d in manifest.drafters if (sizes := _json(run, d.packed, "result"))}
    run.drafting = {d.name: own for d in manifest.drafters if (own := _drafting(run, d))}
    recipe = folder / "recipe.yaml"
    run.recipe = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
    for name, log in _logs(folder, manifest):
        run.curves[name] = _lines(log)
        run.sources.append(log)
    for artifact in manifest.artifacts:
        file = folder / artifact.files.get("provenance", "")
        if file.is_file():
            run.provenance[artifact.folder] = read_as(file, Provenance, AGAIN).model_dump(exclude_unset=True)
            run.sources.append(file)
    return run


def manifest_of(folder: Path, result: dict[str, Any]) -> Manifest:
    """The manifest of the run in `folder`; where it has none, one made from its folders. `result`: its evaluation."""
    if (folder / NAME).is_file():
        return read_as(folder / NAME, Manifest, AGAIN)
    return older.manifest_of(folder, {drafter["name"]: drafter["path"] for drafter in result["drafters"]})


def _logs(folder: Path, manifest: Manifest) -> list[tuple[str, Path]]:
    """(drafter, log of its training) of those whose last stage trained them, by the log's path."""
    trained = [d for d in manifest.drafters if d.stages and "log" in d.stages[-1].files]
    files = {folder / drafter.stages[-1].files["log"]: drafter.name for drafter in trained}
    return [(files[file], file) for file in sorted(files) if file.is_file()]


def _json(run: Run, artifact: Artifact | None, kind: str) -> dict[str, Any] | None:
    """What the file of that kind holds; None where there is none."""
    if artifact is None or kind not in artifact.files or not (file := run.folder / artifact.files[kind]).is_file():
        return None
    run.sources.append(file)
    return read_object(file, AGAIN)


def _drafting(run: Run, drafter: DrafterStages) -> dict[str, Any] | None:
    """What the last stage of the drafter, or `pack`, has fitted as its own temperature."""
    last = _json(run, drafter.stages[-1], "result") if drafter.stages else None
    for result in (run.packed.get(drafter.name), last):
        own = (result or {}).get("drafting")
        if isinstance(own, dict) and isinstance(own.get("temperature"), int | float):
            return own
    return None


def _lines(log: Path) -> list[dict[str, Any]]:
    """The entries of a training's log.jsonl."""
    try:
        entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{log} cannot be read ({first_line(error)}): {AGAIN}.") from None
    if not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{log} cannot be read (a line of it is no object): {AGAIN}.")
    return entries
