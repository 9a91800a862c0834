"""drafting.json: how the checkpoint drafts best. The temperature at which it is accepted most as a drafter, fitted on
text of its target; and the window in which it is to read long texts.

A file of its own, because it says the same of any kind of checkpoint, packed or not, and of one checkpoint only: what
is pruned or trained on drafts otherwise. Only `pack` takes it along.
"""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from sparsedraft.base import bounds
from sparsedraft.base.errors import UserError
from sparsedraft.base.fields import SINKS
from sparsedraft.base.jsonfiles import read_as, write_json

DRAFTING = "drafting.json"
Share = Annotated[float, Field(ge=0, le=1)]


class Drafting(BaseModel):
    """What drafting.json holds.

    `temperature` times the target's is that of the drafter (None: 1, and nothing was fitted); `alpha` the mean of
    Σ_v min(p(v), q(v)) at 1 and at `temperature`, over `places` of a text; `target`: "whole" where all of p was known,
    else "top-k", its likeliest. `window`: tokens that the drafter reads of a long text's end, and `sinks` of its
    beginning, where nothing else is asked for; None: it reads all.
    """

    temperature: Annotated[float, Field(gt=0, le=bounds.TEMPERATURE, strict=True)] | None = None
    alpha: tuple[Share, Share] | None = None
    places: int | None = None
    target: str | None = None
    window: Annotated[int, Field(ge=2, le=bounds.LENGTH, strict=True)] | None = None
    sinks: Annotated[int, Field(ge=0, le=bounds.LENGTH, strict=True)] | None = None

    @model_validator(mode="after")
    def _window_possible(self) -> Self:
        if self.window is not None and self.window <= self.of_sinks:
            raise ValueError(f"window {self.window} is no more than its {self.of_sinks} sinks")
        return self

    @property
    def factor(self) -> float:
        """The drafter's temperature, times the target's."""
        return 1.0 if self.temperature is None else self.temperature

    @property
    def of_sinks(self) -> int:
        """The window's sinks."""
        return SINKS if self.sinks is None else self.sinks

    @property
    def reads(self) -> tuple[int, int] | None:
        """(window, sinks); None where the drafter reads all."""
        return None if self.window is None else (self.window, self.of_sinks)

    @property
    def noted(self) -> dict[str, Any]:
        """The fields of the file, and of results."""
        return self.model_dump(exclude_none=True)


def read(folder: Path) -> Drafting | None:
    """What drafting.json in `folder` holds, None where there is none; UserError for a file of another form."""
    file, mend = folder / DRAFTING, "make it again, or delete the file"
    if not file.is_file():
        return None
    found = read_as(file, Drafting, mend)
    if found.temperature is None and found.window is None:
        raise UserError(f"{file} cannot be read (it has neither temperature nor window): {mend}.")
    return found


def of(folder: Path) -> Drafting:
    """The same; where `folder` says nothing, one that changes nothing."""
    return read(folder) or Drafting()


def write(folder: Path, drafting: Drafting) -> None:
    """Write drafting.json into `folder`."""
    write_json(folder / DRAFTING, drafting.noted)
