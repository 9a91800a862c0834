"""The options of `race`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from sparsedraft.base import bounds
from sparsedraft.base.fields import MaxNewTokens, Running
from sparsedraft.base.options import Argument, Exists, Options
from sparsedraft.models.names import LOOKUP, check_model, split_lookup


def check_racer(ref: str) -> None:
    """UserError where there is no such drafter; MODEL+lookup is one, too."""
    model, beside = split_lookup(ref)
    if beside or model != LOOKUP:
        check_model(model)


class _Models(Options):
    target: Annotated[str, Argument(), Exists(check_model)] = Field(description="The target.")
    drafters: Annotated[tuple[str, ...], Argument(), Exists(check_racer)] = Field(
        description="The drafters to race with: models, lookup, or MODEL+lookup."
    )
    prompt: str = Field(description="What the user says.")


class _Shown(Options):
    k: int | None = Field(
        None, ge=1, le=bounds.DRAFTED, description="Tokens drafted a step; default: what pays best as measured."
    )
    max_new_tokens: MaxNewTokens = 160
    replay: bool = Field(True, description="Show all of them at once, each at its own speed, when all are written.")


class RaceOptions(Running, _Shown, _Models):
    """Who races, on which prompt. Greedy, so that all texts must be equal."""

    @model_validator(mode="after")
    def _several(self) -> Self:
        if not self.drafters:
            raise ValueError("<drafters> name none: give at least one, such as lookup")
        if twice := next((name for name in self.drafters if self.drafters.count(name) > 1), None):
            raise ValueError(f"<drafters> name {twice} twice: leave one of them out")
        return self
