"""Runs without a manifest, of an earlier version or unfinished: the only place that looks at what a run's folder holds.

Kept results (docs/results) are such runs, too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object
from sparsedraft.base.places import slug
from sparsedraft.base.yamlfiles import read_yaml
from sparsedraft.stages.report.manifest import (
    FILES,
    Artifact,
    Drafter,
    Manifest,
    baseline_of,
    optional_parts,
)

OPTIONAL = ("sampled", "speed", "packed-eval")  # parts that a recipe may leave out
MEND = "make it again"  # the mend of a damaged file


def manifest_of(folder: Path, evaluated: Mapping[str, str]) -> Manifest:
    """The manifest of the run in `folder`; `evaluated`: the paths of the drafters of its evaluation, by name."""
    recipe, expected = plain_recipe(folder) or {}, expected_parts(folder)
    artifacts = {artifact.folder: artifact for artifact in _artifacts(folder)}
    drafters = []
    for name, path in evaluated.items():
        packed = artifacts.get(f"packed/{slug(name)}")
        drafters.append(Drafter(name=name, stages=_stages(folder, path, artifacts), packed=packed))
    named = {stage.folder for drafter in drafters for stage in drafter.stages}
    for where, artifact in artifacts.items():  # steps on the way, and drafters that the evaluation has not
        if where.startswith("drafters/") and where not in named:
            drafters.append(Drafter(name=Path(where).parent.name, stages=[artifact]))
    named |= {f"packed/{slug(name)}" for name in evaluated}
    parts = {
        where: artifact
        for where, artifact in artifacts.items()
        if where not in named and not where.startswith("drafters/") and (where not in OPTIONAL or where in expected)
    }
    dense = recipe.get("drafter")
    return Manifest(
        drafter=dense if isinstance(dense, str) else None,
        baseline=baseline_of(recipe, [*evaluated]),
        parts=parts,
        drafters=drafters,
    )


def expected_parts(folder: Path) -> set[str]:
    """Those of the OPTIONAL parts that the run's recipe asks for; what an earlier recipe made is not shown."""
    recipe = plain_recipe(folder)
    return set(OPTIONAL) if recipe is None else set(optional_parts(recipe))


def plain_recipe(folder: Path) -> dict[str, Any] | None:
    """The run's recipe as plain data, whose fields may be those of another version; None where it cannot be read."""
    file = folder / "recipe.yaml"
    try:
        recipe = read_yaml(file) if file.is_file() else None
    except UserError:
        return None
    return recipe if isinstance(recipe, dict) else None


def _artifacts(folder: Path) -> Iterator[Artifact]:
    """Every folder in `folder` that holds a file of an artifact, but for reports and what is hidden."""
    files = (file for name in FILES.values() for file in folder.rglob(name))
    for where in sorted({file.parent.relative_to(folder) for file in files}):
        if "report" in where.parts or any(part.startswith(".") for part in where.parts):
            continue
        if artifact := Artifact.at(folder, where.as_posix()):
            yield artifact


def _stages(folder: Path, path: str, artifacts: Mapping[str, Artifact]) -> list[Artifact]:
    """The artifacts that led to the drafter at `path`: from each, the one among its inputs that is of this run, too."""

    def of_run(text: str) -> str | None:
        posix = Path(text).as_posix()
        return next((at for at in artifacts if at.startswith("drafters/") and posix.endswith(f"/{at}")), None)

    chain: list[str] = []
    at = of_run(path)
    while at is not None and at not in chain:
        chain.insert(0, at)
        provenance = artifacts[at].files.get("provenance")
        inputs = read_object(folder / provenance, MEND).get("inputs") if provenance else None
        models = {name: value for name, value in (inputs or {}).items() if name not in ("data", "match_macs")}
        at = next((start for text in _paths(models) if (start := of_run(text))), None)
    return [artifacts[where] for where in chain]


def _paths(value: Any) -> list[str]:
    """Every "path" in a provenance's inputs."""
    if isinstance(value, dict):
        path = [value["path"]] if isinstance(value.get("path"), str) else []
        return path + [text for item in value.values() for text in _paths(item)]
    return [text for item in value for text in _paths(item)] if isinstance(value, list) else []
