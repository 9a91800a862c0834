"""The manifest of a run: which artifacts its folder holds, so that a report opens files by name and searches for none.

`run` writes it. All paths are relative to the run's folder, so that the folder may be moved.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_as, write_json

NAME = "manifest.json"
FILES = {"result": "result.json", "provenance": "provenance.json", "example": "example.json", "log": "log.jsonl"}
BASELINE = "layer-pruned+distilled"  # of the headline, where the recipe names none


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{path!r} does not lie in the run")
    return path


Inside = Annotated[str, AfterValidator(_inside)]  # a path relative to the run


class Artifact(BaseModel):
    """A folder that a stage made, and those of its files that a report shows."""

    folder: Inside
    files: dict[str, Inside]  # by kind: result, provenance, example, log

    @classmethod
    def at(cls, run: Path, folder: str) -> Self | None:
        """The artifact `folder` of `run`; None where it holds no file that a report shows."""
        files = {kind: f"{folder}/{name}" for kind, name in FILES.items() if (run / folder / name).is_file()}
        return cls(folder=folder, files=files) if files else None


class Drafter(BaseModel):
    """`stages`: the artifacts that led to the drafter, in their order; those of the drafters it started from first."""

    name: str
    stages: list[Artifact]
    packed: Artifact | None = None

    @classmethod
    def at(cls, run: Path, name: str, stages: Sequence[str], packed: str | None) -> Self:
        """The drafter whose artifacts are in these folders of `run`, as far as they exist."""
        artifacts = [artifact for folder in stages if (artifact := Artifact.at(run, folder))]
        return cls(name=name, stages=artifacts, packed=Artifact.at(run, packed) if packed else None)


class Manifest(BaseModel):
    """`drafter`: the model that the drafters were made from, None: the target itself; `baseline`: the drafter that the
    headline compares with; `drafters`: those that the run evaluates and those that are steps on the way to them."""

    version: Literal[1] = 1
    drafter: str | None
    baseline: str | None
    parts: dict[str, Artifact]  # distilled, eval, sampled, speed, packed-eval
    drafters: list[Drafter]

    @property
    def artifacts(self) -> list[Artifact]:
        """Every artifact once, by folder."""
        packed = [drafter.packed for drafter in self.drafters if drafter.packed]
        stages = [stage for drafter in self.drafters for stage in drafter.stages]
        by_folder = {Path(artifact.folder): artifact for artifact in (*self.parts.values(), *stages, *packed)}
        return [by_folder[folder] for folder in sorted(by_folder)]

    def over(self, earlier: "Manifest") -> "Manifest":
        """This manifest of a run under way with what `earlier` lists and it does not: a finished run that grows."""
        names = {drafter.name for drafter in self.drafters}
        kept = [drafter for drafter in earlier.drafters if drafter.name not in names]
        return self.model_copy(update={"parts": {**earlier.parts, **self.parts}, "drafters": [*self.drafters, *kept]})


def write(run: Path, manifest: Manifest, *, finished: bool) -> None:
    """Write `manifest` in place of the earlier one, whose artifacts stay listed until the run is `finished`."""
    if not finished and (run / NAME).is_file():
        with suppress(UserError):  # a damaged one is replaced
            manifest = manifest.over(read_as(run / NAME, Manifest))
    write_json(run / NAME, manifest.model_dump())


def parts_at(run: Path, names: Sequence[str]) -> dict[str, Artifact]:
    """Those of the parts `names` that `run` has."""
    return {name: artifact for name in names if (artifact := Artifact.at(run, name))}


def optional_parts(recipe: Mapping[str, Any]) -> list[str]:
    """The parts that `recipe`, as plain data, asks for and another may leave out."""
    speed = recipe.get("speed")
    speed = speed if isinstance(speed, Mapping) else {}
    sections = {"sampled": recipe.get("sampled"), "speed": speed, "packed-eval": speed.get("acceptance")}
    return [part for part, section in sections.items() if section]


def baseline_of(recipe: Mapping[str, Any], drafters: Sequence[str]) -> str | None:
    """The drafter that the headline compares with: the one that `recipe` names, else BASELINE; None without it."""
    name = recipe.get("baseline") or BASELINE
    return name if name in drafters else None
