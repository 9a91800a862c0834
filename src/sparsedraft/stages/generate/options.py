"""The options of `generate`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparsedraft.base import bounds
from sparsedraft.base.fields import Across, Length, Running, Sampled
from sparsedraft.base.options import Argument, Exists, Options
from sparsedraft.models.names import LOOKUP, check_drafter, check_model


class _Drafting(Options):
    target: Annotated[str, Argument(), Exists(check_model)] = Field(
        description="The target; the output is exactly its own."
    )
    prompt: tuple[str, ...] = Field(
        description="What the user says (the chat template is put around it); several are decoded at once."
    )
    drafter: Annotated[str | None, Exists(check_drafter)] = Field(
        None, description="A drafter, or 'lookup' (prompt look-up); default: plain decoding."
    )
    lookup: bool = Field(
        False, description="Beside the drafter, draft from the text so far where that is expected to pay more."
    )
    k: int | None = Field(
        None, ge=0, le=bounds.DRAFTED, description="Tokens drafted a step (constant: 5); for other policies, at most."
    )
    policy: Literal["constant", "auto", "confidence", "bandit"] | None = Field(
        None,
        description="How many to draft: constant, auto (what pays best as measured), confidence (stop at doubtful "
        "ones) or bandit (over these). Default: auto; constant where k, a tree, or a seed of a sampled text is given.",
    )
    learned: Literal["keep", "forget", "off"] = Field(
        "keep",
        description="What auto learned of this pair on this machine: keep (start from it, and add to it), forget "
        "(start anew), or off (neither read nor write it).",
    )


class _Output(Options):
    stop: tuple[str, ...] = Field((), description="Text that ends the answer; as often as you like.")
    raw: bool = Field(False, description="Continue the text as it is, without a chat template.")
    stats: bool = Field(False, description="Say how many tokens each step accepted.")


class GenerateOptions(Running, _Output, Sampled, Length, Across, _Drafting):
    """What `generate` writes: which models, on which prompts, drawn how."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.raw and self.template_args:
            name = next(iter(self.template_args))
            raise ValueError(f"<template_args> {name} does nothing under <raw>: leave one of them out")
        if self.drafter_window and self.drafter in (None, LOOKUP):
            raise ValueError(
                f"<drafter_window> {self.drafter_window} is a drafter's, and no model drafts: name one as <drafter>, "
                "or leave it out"
            )
        if self.drafting == "parallel" and self.drafter in (None, LOOKUP):
            raise ValueError("<drafting> parallel is a drafter's, and no model drafts: name one as <drafter>")
        if self.lookup and self.drafter in (None, LOOKUP):
            raise ValueError(f"<lookup> goes beside a model: name one as <drafter>, or give <drafter> {LOOKUP} alone")
        if self.lookup and self.tree > 1:
            raise ValueError(f"<lookup> drafts chains, and <tree> {self.tree} none: leave one of them out")
        return self

    @property
    def chosen_policy(self) -> str:
        """The policy's name. `auto` decides by measured times, so with it a seed does not give a sampled text again."""
        if self.policy is not None:
            return self.policy
        repeats = self.temperature > 0 and "seed" in self.model_fields_set
        return "constant" if self.drafter is None or self.k is not None or self.tree > 1 or repeats else "auto"
