"""The options of `run` and `plan`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from sparsedraft.base import bounds
from sparsedraft.base.errors import UserError
from sparsedraft.base.fields import Out, Replacing
from sparsedraft.base.options import Argument, Exists, Options, StageOptions
from sparsedraft.native.cache_size import CONTEXT


def check_recipe(path: Path) -> None:
    """Raise UserError where there is no such file."""
    if not path.is_file():
        raise UserError(f"recipe {path}: there is no such file; check the path.")


class _Source(Options):
    recipe: Annotated[Path, Argument(), Exists(check_recipe)] = Field(description="Recipe file (YAML).")
    overrides: Annotated[tuple[str, ...], Argument()] = Field(
        (), description="section.field=value, as many as you like."
    )


class _Place(Options):
    out: Out = Path("runs/run")


class RunOptions(Replacing, _Place, _Source):
    """What `run` makes."""


class PlanOptions(StageOptions, _Source):
    """What `plan` looks at."""

    gflops: float | None = Field(None, ge=0.001, description="Device speed, Gflop/s; default: measured here.")
    context_length: int = Field(
        CONTEXT, ge=1, le=bounds.LENGTH, description="Tokens of a text whose keys and values are counted."
    )
