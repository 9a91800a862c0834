"""Read what a run left on disk."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from sparsedraft.base.errors import UserError, first_line
from sparsedraft.base.sidefiles import read_as, read_object
from sparsedraft.base.yamlfiles import read_yaml

AGAIN = "make it again"

OPTIONAL = ("sampled", "speed", "packed-eval")  # parts that a recipe may leave out


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
    result: dict[str, Any]
    example: dict[str, Any] | None = None
    distilled: dict[str, Any] | None = None
    sampled: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None
    packed_eval: dict[str, Any] | None = None
    packed: dict[str, dict[str, Any]] = field(default_factory=dict)  # results of `pack` by folder
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # log.jsonl by drafter
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)  # by artifact, relative to the run
    recipe: str = ""
    sources: list[Path] = field(default_factory=list)  # files that the report follows from


def asked_for(folder: Path) -> set[str]:
    """Those of the OPTIONAL parts that the run's recipe asks for; what an earlier recipe made is not shown."""
    file = folder / "recipe.yaml"
    try:  # as it is, no Recipe: an older version's may have other fields
        recipe = read_yaml(file) if file.is_file() else None
    except UserError:
        recipe = None
    if not isinstance(recipe, dict):
        return set(OPTIONAL)
    speed = recipe.get("speed")
    speed = speed if isinstance(speed, dict) else {}
    wanted = {"sampled": recipe.get("sampled"), "speed": speed, "packed-eval": speed.get("acceptance")}
    return {part for part in OPTIONAL if wanted[part]}


def load(folder: Path) -> Run:
    """The run in `folder`; UserError if it has no finished evaluation."""
    file = folder / "eval" / "result.json"
    if not file.is_file():
        raise UserError(
            f"{folder} is not the folder of a finished run (it lacks eval/result.json): give a run's --out."
        )
    run = Run(folder, read_as(file, Evaluated, AGAIN).model_dump(exclude_unset=True), sources=[file])
    run.example = _json(run, folder / "eval" / "example.json")
    run.distilled = _json(run, folder / "distilled" / "result.json")
    asked = asked_for(folder)
    for part in (part for part in OPTIONAL if part in asked):
        setattr(run, part.replace("-", "_"), _json(run, folder / part / "result.json"))
    for file in sorted(folder.glob("packed/*/result.json")):
        run.packed[file.parent.name] = read_object(file, AGAIN)
        run.sources.append(file)
    recipe = folder / "recipe.yaml"
    run.recipe = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
    names = {Path(d["path"]).parent.name: d["name"] for d in run.result["drafters"]}
    for log in sorted(folder.glob("drafters/*/finetuned/log.jsonl")):
        slug = log.parent.parent.name
        run.curves[names.get(slug, slug)] = _lines(log)
        run.sources.append(log)
    for file in sorted(folder.rglob("provenance.json")):
        where = file.parent.relative_to(folder)
        if "report" not in where.parts and not any(part.startswith(".") for part in where.parts):
            run.provenance[str(where)] = read_as(file, Provenance, AGAIN).model_dump(exclude_unset=True)
            run.sources.append(file)
    return run


def _json(run: Run, file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    run.sources.append(file)
    return read_object(file, AGAIN)


def _lines(log: Path) -> list[dict[str, Any]]:
    """The entries of a training's log.jsonl."""
    try:
        found = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{log} cannot be read ({first_line(error)}): {AGAIN}.") from None
    if not all(isinstance(entry, dict) for entry in found):
        raise UserError(f"{log} cannot be read (a line of it is no object): {AGAIN}.")
    return found
