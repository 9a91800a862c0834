"""The options of `serve`."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sparsedraft.base import bounds
from sparsedraft.base.fields import OwnWindow, Running, Uag
from sparsedraft.base.options import Argument, Exists, Options
from sparsedraft.models.names import LOOKUP, check_drafter, check_model


class _Models(Options):
    target: Annotated[str, Argument(), Exists(check_model)] = Field(
        description="The target; every answer is exactly its own."
    )
    drafter: Annotated[tuple[str, ...], Exists(check_drafter)] = Field(
        (),
        description="A drafter, or 'lookup' (prompt look-up); of several each request chooses one by its draft_model, "
        "else the first drafts; default: plain decoding.",
    )
    uag: Uag = "auto"
    lookup: bool = Field(
        False, description="Beside the drafter, draft from the text so far where that is expected to pay more."
    )
    k: int | None = Field(
        None, ge=0, le=bounds.DRAFTED, description="Tokens drafted a step; default: what pays best as measured."
    )
    seeded_k: int = Field(
        4, ge=0, le=bounds.DRAFTED, description="Tokens drafted a step, always, for sampled requests with a seed."
    )
    served_name: str | None = Field(None, description="The model's name for clients; default: the target's folder.")

    @field_validator("drafter", mode="before")
    @classmethod
    def _one(cls, given: object) -> object:
        """One may be given by itself."""
        return () if given is None else (given,) if isinstance(given, str) else given


class _Network(Options):
    host: str = Field("127.0.0.1", description="Address to listen on; others than this machine's need --api-key.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0: any that is free.")
    allowed_host: tuple[str, ...] = Field(
        (), description="Host names that clients may call this server by, beside this machine's own."
    )
    api_key: str | None = Field(
        None, description="Key that clients must send; default: $SPARSEDRAFT_API_KEY, and none where that is not set."
    )


class _Load(Options):
    parallel: int = Field(4, ge=1, le=64, description="Answers written at once.")
    queue: int = Field(64, ge=0, le=100_000, description="Requests that may wait for a place; more get status 429.")
    max_new_tokens: int = Field(
        4096, ge=1, le=bounds.LENGTH, description="Longest answer, tokens, where a request does not ask for less."
    )
    prompt_piece: int = Field(
        256,
        ge=1,
        le=bounds.LENGTH,
        description="Tokens of new prompts that are read before the answers under way go on.",
    )
    grace: float = Field(30.0, ge=0, le=3600, description="Seconds that running answers get to end after SIGTERM.")


class ServeOptions(Running, _Load, _Network, OwnWindow, _Models):
    """What is served, and to whom."""

    log_level: Literal["warning", "info"] = Field("warning", description="What the server logs: warning, or info.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if twice := next((name for name in self.drafter if self.drafter.count(name) > 1), None):
            raise ValueError(f"<drafter> {twice} is given twice: leave one of them out")
        models = [name for name in self.drafter if name != LOOKUP]
        if self.lookup and not models:
            raise ValueError(f"<lookup> goes beside a model: name one as <drafter>, or give <drafter> {LOOKUP} alone")
        if self.drafter_window and not models:
            raise ValueError(
                f"<drafter_window> {self.drafter_window} is a drafter's, and no model drafts: name one as <drafter>, "
                "or leave it out"
            )
        return self
