"""The options of `prune` and `drop-layers`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sparsedraft.base import bounds
from sparsedraft.base.fields import Calibration, Machine, Out, Replacing
from sparsedraft.base.options import Argument, Exists, Options
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models.names import check_model
from sparsedraft.text.names import check_text


def not_sexagesimal(value: Any) -> Any:
    """N:M as it was meant: YAML 1.1 reads a bare 2:4 as 2·60 + 4."""
    return "{}:{}".format(*divmod(value, 60)) if isinstance(value, int) and value > 1 else value


class _Mask(Options):
    """Which weights to prune."""

    pattern: str = Field("unstructured", description="unstructured, or N:M such as 2:4.")
    sparsity: float | None = Field(
        None, gt=0, lt=1, description="Share of each linear's weights to prune; default 0.5, or what N:M gives."
    )
    method: Literal["sparsegpt", "alps", "wanda", "magnitude"] = Field(
        "sparsegpt", description="sparsegpt, alps (better masks, refined; slower), wanda or magnitude."
    )
    allocation: Literal["uniform", "owl"] = Field("uniform", description="uniform, or owl (outlier-weighted layers).")
    refine: bool = Field(False, description="Re-solve the weights that are left, with the mask fixed.")
    quantize: Literal["none", "int4"] = Field(
        "none", description="Round the weights that are left in the same sweep: int4 (a scale for each 32), or none."
    )

    @field_validator("pattern", mode="before")
    @classmethod
    def _not_sexagesimal(cls, value: Any) -> Any:
        return not_sexagesimal(value)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _ = self.share
        return self

    @property
    def share(self) -> float:
        """The share of the weights to prune. UserError where the pattern does not have the sparsity."""
        return Pattern.parse(self.pattern).resolve(self.sparsity)

    @property
    def rounds_apart(self) -> bool:
        """Whether a linear may be rounded in a sweep that prunes nothing."""
        joint = self.method == "sparsegpt" and self.allocation == "uniform" and not self.refine
        return self.quantize != "none" and not joint


class PruneSettings(Calibration, _Mask):
    """How to prune in one shot: the recipe's section."""


class DropLayersSettings(Options):
    """How many layers to drop: the recipe's section."""

    layers: int | None = Field(None, ge=1, le=bounds.LAYERS, description="How many consecutive layers to drop.")
    match_macs: Annotated[str | None, Exists(check_model)] = Field(
        None, description="Drop as many as bring the MACs nearest to this checkpoint's."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.layers is None) == (self.match_macs is None):
            raise ValueError("drop-layers takes either <layers> or <match_macs>: give one of them")
        return self


class _Sources(Options):
    out: Out
    calibration: Annotated[str, Exists(check_text)] = Field(
        description="Distilled data folder, or PROMPTS, to calibrate on."
    )


class PruneOptions(Replacing, Machine, PruneSettings, _Sources):
    """What `prune` does: which model, on which text, and how."""

    model: Annotated[str, Argument(), Exists(check_model)] = Field(description="The drafter to prune.")


class DropLayersOptions(Replacing, Machine, Calibration, DropLayersSettings, _Sources):
    """What `drop-layers` does: which model, on which text, and how much."""

    model: Annotated[str, Argument(), Exists(check_model)] = Field(description="The drafter to cut.")
