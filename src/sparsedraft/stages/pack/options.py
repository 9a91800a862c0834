"""The options of `pack`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparsedraft.base import bounds
from sparsedraft.base.fields import SINKS, Calibration, Machine, Out, Replacing, ValidationPrompts, check_window
from sparsedraft.base.options import Argument, Exists
from sparsedraft.models.names import check_model
from sparsedraft.text.names import check_data, check_text

Weights = Literal["f16", "bf16", "int8", "int4"]
Ends = Weights | Literal["q6_k"]  # of embedding and head


class _Packing(Calibration):
    model: Annotated[str, Argument(), Exists(check_model)] = Field(description="The checkpoint to pack.")
    out: Out
    weights: Weights | Literal["stored"] = Field(
        "int8",
        description="Type of the values: f16, bf16, int8 (rounded, one scale for each row), int4 (one for each 32), or "
        "stored: those of a .gguf file as they are.",
    )
    format: Literal["sparsedraft", "compressed-tensors"] = Field(
        "sparsedraft",
        description="sparsedraft: zeros left out, for this package; compressed-tensors: int8 or int4 with the zeros, "
        "head and embedding as they are, for vLLM and transformers alone.",
    )
    head_weights: Ends | None = Field(
        None,
        description="The same of the head; also q6_k, of 6.56 bits. Default: as --weights; int8 where that is int4.",
    )
    embedding_weights: Ends | None = Field(
        None, description="The same of the embedding, of which a token reads one row. Default: as the head."
    )
    activations: int | None = Field(
        None,
        ge=8,
        le=16,
        description="Bits of the activations that int8 is multiplied with, dense or by a mask: 8 is faster for masks, "
        "and with many tokens. Default: 16; 8 where --weights is int4, which takes 8 itself.",
    )
    calibration: Annotated[str | None, Exists(check_text)] = Field(
        None,
        description="Distilled data folder, or PROMPTS, to round int4 on, a layer at a time; default: least squares.",
    )
    tokens: int = Field(16384, ge=1, le=bounds.TOKENS, description="Calibration tokens.")
    head_tokens: int | None = Field(
        None,
        ge=1,
        le=bounds.VOCABULARY,
        description="Trim the head to so many tokens, the most frequent in --head-data.",
    )
    head_data: str | None = Field(None, description="Distilled data folder of the target.")
    calibrate_temperature: Annotated[Path | None, Exists(check_data)] = Field(
        None,
        description="Distilled data folder: fit the drafter's own temperature to its validation prompts, and keep it.",
    )
    teacher: Annotated[str | None, Exists(check_model)] = Field(
        None,
        description="The target that wrote the data of --calibrate-temperature; default: the log-probabilities in it.",
    )
    validation_prompts: ValidationPrompts = 16
    drafter_window: int | None = Field(
        None,
        ge=0,
        le=bounds.LENGTH,
        description="Note that the drafter reads so many tokens of a long text's end where nothing else is asked for; "
        "0: all. Default: as its checkpoint.",
    )
    drafter_sinks: int | None = Field(
        None, ge=0, le=bounds.LENGTH, description="Tokens that it then reads of the text's beginning. Default: 4."
    )
    head_follows: bool = Field(
        False,
        description="Keep the whole head: a draft looks at the rows of --head-tokens and of the text's own tokens.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.head_tokens is None) != (self.head_data is None):
            raise ValueError("<head_tokens> and <head_data> belong together: the data says which tokens are frequent")
        self._check_format()
        if self.head_follows and self.head_tokens is None:
            raise ValueError("<head_follows> needs <head_tokens> and <head_data>, the tokens that it always looks at")
        if self.drafter_sinks is not None and not self.drafter_window:
            raise ValueError(f"<drafter_sinks> {self.drafter_sinks} are of a window: give <drafter_window>, too")
        check_window(self.drafter_window or 0, SINKS if self.drafter_sinks is None else self.drafter_sinks)
        if self.activations not in (None, 8, 16):
            raise ValueError(f"<activations> are of 8 or of 16 bits, not of {self.activations}: give one of them")
        if self.activations == 8 and not {self.weights, self.head_weights} & {"int8", "int4"}:
            raise ValueError(f"<activations> of 8 bits are for int8, not <weights> {self.weights}: leave them out")
        if self.weights == "stored" and (self.head_weights or self.embedding_weights):
            raise ValueError(
                "<weights> stored keeps head and embedding, too: leave out the types that they are to have"
            )
        if self.calibration is not None and self.weights != "int4":
            raise ValueError(f"<calibration> is for <weights> int4, not {self.weights}: leave one of them out")
        if self.teacher is not None and self.calibrate_temperature is None:
            raise ValueError(
                f"<teacher> {self.teacher} is not asked anything without <calibrate_temperature>: give that, too"
            )
        return self

    def _check_format(self) -> None:
        """ValueError for what compressed-tensors cannot express."""
        if self.format == "sparsedraft":
            return
        if self.weights not in ("int8", "int4"):
            raise ValueError(f"<format> {self.format} holds int8 or int4, not <weights> {self.weights}: give one")
        ours = ("head_weights", "embedding_weights", "activations", "head_tokens")
        more = ("drafter_window", "calibrate_temperature")
        if given := next((name for name in (*ours, *more) if getattr(self, name) is not None), None):
            raise ValueError(f"<format> {self.format} has no <{given}>: leave it out, or take the format sparsedraft")


class PackOptions(Replacing, Machine, _Packing):
    """What `pack` does: which checkpoint, and how its values and its head are kept."""
