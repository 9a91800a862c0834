"""Read what a run left on disk."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from sparsedraft.errors import UserError

OPTIONAL = ("sampled", "speed", "packed-eval")  # parts that a recipe may leave out


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
        recipe = OmegaConf.load(file) if file.is_file() else None
    except YAMLError:
        recipe = None
    if not isinstance(recipe, DictConfig):
        return set(OPTIONAL)
    speed = recipe.get("speed") or {}
    wanted = {"sampled": recipe.get("sampled"), "speed": speed, "packed-eval": speed.get("acceptance")}
    return {part for part in OPTIONAL if wanted[part]}


def load(folder: Path) -> Run:
    """The run in `folder`; UserError if it has no finished evaluation."""
    file = folder / "eval" / "result.json"
    if not file.is_file():
        raise UserError(
            f"{folder} is not the folder of a finished run (it lacks eval/result.json): give a run's --out."
        )
    run = Run(folder, json.loads(file.read_text(encoding="utf-8")), sources=[file])
    run.example = _json(run, folder / "eval" / "example.json")
    run.distilled = _json(run, folder / "distilled" / "result.json")
    asked = asked_for(folder)
    for part in (part for part in OPTIONAL if part in asked):
        setattr(run, part.replace("-", "_"), _json(run, folder / part / "result.json"))
    for file in sorted(folder.glob("packed/*/result.json")):
        run.packed[file.parent.name] = json.loads(file.read_text(encoding="utf-8"))
        run.sources.append(file)
    recipe = folder / "recipe.yaml"
    run.recipe = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    names = {Path(d["path"]).parent.name: d["name"] for d in run.result["drafters"]}
    for log in sorted(folder.glob("drafters/*/finetuned/log.jsonl")):
        slug = log.parent.parent.name
        run.curves[names.get(slug, slug)] = [json.loads(line) for line in log.read_text().splitlines()]
        run.sources.append(log)
    for file in sorted(folder.rglob("provenance.json")):
        where = file.parent.relative_to(folder)
        if "report" not in where.parts and not any(part.startswith(".") for part in where.parts):
            run.provenance[str(where)] = json.loads(file.read_text(encoding="utf-8"))
            run.sources.append(file)
    return run


def _json(run: Run, file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    run.sources.append(file)
    return json.loads(file.read_text(encoding="utf-8"))
