"""drafting.json: the temperature at which the checkpoint is accepted most as a drafter, fitted on text of its target.

A file of its own, because it says the same of any kind of checkpoint, packed or not, and of one checkpoint only: what
is pruned or trained on drafts otherwise. Only `pack` takes it along.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from sparsedraft.base import bounds
from sparsedraft.base.jsonfiles import read_as, write_json

DRAFTING = "drafting.json"
Share = Annotated[float, Field(ge=0, le=1)]


class Drafting(BaseModel):
    """What drafting.json holds.

    `temperature` times the target's is that of the drafter; `alpha` the mean of Σ_v min(p(v), q(v)) at 1 and at
    `temperature`, over `places` of a text; `target`: "whole" where all of p was known, else "top-k", its likeliest.
    """

    temperature: Annotated[float, Field(gt=0, le=bounds.TEMPERATURE, strict=True)]
    alpha: tuple[Share, Share] | None = None
    places: int | None = None
    target: str | None = None


def read(folder: Path) -> Drafting | None:
    """What drafting.json in `folder` holds, None where there is none; UserError for a file of another form."""
    file = folder / DRAFTING
    return read_as(file, Drafting, "fit it again, or delete the file") if file.is_file() else None


def temperature_of(folder: Path) -> float:
    """The drafter's own temperature; 1 where `folder` says nothing. UserError as `read`."""
    drafting = read(folder)
    return 1.0 if drafting is None else drafting.temperature


def write(folder: Path, drafting: Drafting) -> None:
    """Write drafting.json into `folder`."""
    write_json(folder / DRAFTING, drafting.model_dump(exclude_none=True))
