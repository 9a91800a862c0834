"""The options of `advise`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from sparsedraft.base import bounds
from sparsedraft.base.fields import MaxNewTokens, Replacing, Running, Sampled
from sparsedraft.base.options import Argument, Exists, Options
from sparsedraft.models.names import LOOKUP, check_drafter, check_model
from sparsedraft.text.names import check_prompts


class _Models(Options):
    target: Annotated[str, Argument(), Exists(check_model)] = Field(description="The target.")
    drafters: Annotated[tuple[str, ...], Argument(), Exists(check_drafter)] = Field(
        (), description="The drafters to choose from; look-up is tried in any case."
    )
    prompts: Annotated[str, Exists(check_prompts)] = Field(
        "demo:eval", description="PROMPTS like those that you will ask: what drafts bring depends on them."
    )


class _Effort(Options):
    limit: int = Field(
        8, ge=2, le=bounds.PROMPTS, description="Prompts to measure on, at equal distances through the file."
    )
    max_new_tokens: MaxNewTokens = 128
    out: Path | None = Field(
        None, description="Folder for the advice and the evaluation behind it; default: kept nowhere."
    )


class AdviseOptions(Replacing, Running, _Effort, Sampled, _Models):
    """What `advise` chooses from, and on what it measures."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if twice := next((name for name in self.drafters if self.drafters.count(name) > 1), None):
            raise ValueError(f"<drafters> name {twice} twice: leave one of them out")
        if LOOKUP in self.drafters:
            raise ValueError(f"<drafters> name {LOOKUP}, which is tried in any case: leave it out")
        return self
