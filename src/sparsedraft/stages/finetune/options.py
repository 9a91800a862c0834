"""The options of `finetune`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sparsedraft.base import bounds
from sparsedraft.base.fields import Machine, Out, Replacing, Seed, SequenceLength, ValidationPrompts, Windowed
from sparsedraft.base.options import Argument, Exists, Options, StageOptions
from sparsedraft.models.names import check_model
from sparsedraft.text.dropping import Dropping
from sparsedraft.text.names import check_data

DIVERGENCES = ("kl", "reverse-kl", "tvd")  # losses that compare with the target
# the keys of settings.json, whose order is part of a checkpoint's hash; those of later options follow
RECORDED = (
    "loss", "tokens", "learning_rate", "warmup", "weight_decay", "betas", "clip", "sequence_length", "rows_per_step",
    "train_embeddings", "gradient_checkpointing", "patience", "validate_every", "save_every", "seed", "nll_weight",
    "on_policy", "feature_weight", "quantize", "reselect_every", "reselect_share",
)  # fmt: skip
PARALLEL = ("parallel_tokens", "parallel_keep", "parallel_least", "mask_token")  # read under that objective alone


class _Sources(Options):
    drafter: Annotated[str, Argument(), Exists(check_model)] = Field(
        description="The drafter to train; its zeros stay zeros."
    )
    data: Annotated[Path, Argument(), Exists(check_data)] = Field(description="Distilled data folder.")
    out: Out
    teacher: Annotated[str | None, Exists(check_model)] = Field(
        None,
        description="The target that wrote DATA, for a loss other than nll; default: the log-probabilities in DATA.",
    )
    feature_teacher: Annotated[str | None, Exists(check_model)] = Field(
        None, description="The dense drafter, whose hidden states SquareHead compares with."
    )


class Training(Options):
    """How to train a drafter. Lengths and budgets are in tokens, prompt and answer together."""

    loss: Literal["nll", "kl", "reverse-kl", "tvd"] = Field(
        "nll", description="nll; or against the target's distributions: kl, reverse-kl, tvd (1 minus acceptance)."
    )
    nll_weight: float = Field(
        0.0, ge=0, le=1, description="w of (1-w) x loss + w x nll, 0 to 1, for a loss other than nll."
    )
    objective: Literal["next-token", "parallel"] = Field(
        "next-token",
        description="next-token; or parallel: the drafter learns to write a whole draft in one pass, at mask tokens.",
    )
    parallel_tokens: int = Field(
        8, ge=2, le=bounds.DRAFTED, description="Under parallel: tokens of the longest draft that it learns."
    )
    parallel_keep: float = Field(
        0.7,
        gt=0,
        le=1,
        description="Under parallel: share of mask tokens kept, to the power of their depth; 1: all.",
    )
    parallel_least: float = Field(0.2, ge=0, le=1, description="Under parallel: the least of these shares.")
    mask_token: int | None = Field(
        None,
        ge=0,
        le=bounds.VOCABULARY,
        description="Under parallel: id of the mask token; default: the drafter's, else one that no text has.",
    )
    on_policy: float = Field(
        0.0, ge=0, le=1, description="Share of rows, 0 to 1, that the drafter writes itself and the teacher scores."
    )
    feature_weight: float = Field(0.0, ge=0, description="Weight of SquareHead beside the loss; 0 is off.")
    quantize: Literal["none", "int8", "int4"] = Field(
        "none", description="Train the linears for rounding to int8 (scale per row) or int4 (per 32 inputs); or none."
    )
    reselect_every: int = Field(
        0,
        ge=0,
        le=bounds.STEPS,
        description="Let the mask move every so many steps, until 75 % of them; 0: it stays.",
    )
    reselect_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the surviving weights that the first move swaps; falls to 0 by a cosine.",
    )
    tokens: int | None = Field(
        None, ge=1, le=bounds.TOKENS, description="Tokens to train on; default: each sample once."
    )
    learning_rate: float = Field(1e-4, gt=0, lt=1, description="Peak learning rate of AdamW.")
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps to warm up.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    clip: float = Field(1.0, gt=0, description="Largest norm of a step's gradient.")
    sequence_length: SequenceLength = 512
    rows_per_step: int = Field(2, ge=1, le=bounds.ROWS, description="Packed sequences per optimizer step.")
    train_embeddings: bool = Field(True, description="Train the embedding and the head, too.")
    gradient_checkpointing: bool = Field(False, description="Less memory for a third more time: keep no activations.")
    patience: int = Field(
        0,
        ge=0,
        le=bounds.STEPS,
        description="Validations without a new best acceptance after which to stop and keep the best; 0: off.",
    )
    validate_every: int = Field(25, ge=1, le=bounds.STEPS, description="Steps between validations.")
    save_every: int = Field(25, ge=1, le=bounds.STEPS, description="Steps between saved states to resume from.")

    @property
    def dropping(self) -> Dropping:
        """Which mask tokens are kept."""
        return Dropping(self.parallel_tokens, self.parallel_keep, self.parallel_least)

    @property
    def growth(self) -> float:
        """Tokens read for each token of an answer, at most; 1 without mask tokens."""
        return self.dropping.growth if self.objective == "parallel" else 1.0

    @model_validator(mode="after")
    def _masks_are_read(self) -> Self:
        given = next((name for name in PARALLEL if name in self.model_fields_set), None)
        if given and self.objective != "parallel" and getattr(self, given) != type(self).model_fields[given].default:
            raise ValueError(
                f"<{given}> {getattr(self, given)} does nothing under <objective> {self.objective}: set that to "
                "parallel, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _compares(self) -> Self:
        for name, share in (("nll_weight", self.nll_weight), ("on_policy", self.on_policy)):
            if share and self.loss == "nll":
                raise ValueError(
                    f"<{name}> {share:g} needs a loss that compares with the target: set <loss> to one of "
                    f"{', '.join(DIVERGENCES)}, or leave it out"
                )
        if self.on_policy and self.nll_weight == 1:
            raise ValueError(
                f"<nll_weight> 1 leaves nothing to learn from the drafter's own text (<on_policy> {self.on_policy:g}): "
                "lower it"
            )
        return self


class Settings(StageOptions, Training):
    """What the loop gets."""

    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW
    seed: Seed = 0

    def recorded(self) -> dict[str, Any]:
        """The values by name, as settings.json and the provenance have them."""
        known = {name: index for index, name in enumerate(RECORDED)}
        left_out = () if self.objective == "parallel" else ("objective", *PARALLEL)  # older versions had none
        values = [item for item in self if item[0] not in left_out]
        return dict(sorted(values, key=lambda item: known.get(item[0], len(known))))


class FinetuneSettings(Windowed, Training):
    """How to fine-tune: the recipe's section."""

    validation_prompts: ValidationPrompts = 16


class FinetuneOptions(Replacing, Machine, FinetuneSettings, _Sources):
    """What `finetune` does: which drafter, on which data, and how."""

    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(
            description="Arithmetic: float32, bfloat16, or auto: bfloat16 where the device has instructions for it; "
            "weights and moments are float32 in all."
        ),
    ] = "float32"  # type: ignore[assignment]  # wider than the base class has it

    @property
    def settings(self) -> Settings:
        """Those of the loop."""
        names = Settings.model_fields.keys() & type(self).model_fields.keys()
        return Settings.model_construct(**{name: getattr(self, name) for name in names})

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if self.drafter_window and self.drafter_window + self.drafter_sinks >= self.sequence_length:
            raise ValueError(
                f"<drafter_window> {self.drafter_window} and {self.drafter_sinks} sinks leave nothing to train on of "
                f"<sequence_length> {self.sequence_length}: raise that"
            )
        return self

    @model_validator(mode="after")
    def _teachers(self) -> Self:
        if self.teacher is not None and self.loss == "nll":
            raise ValueError(
                f"<teacher> {self.teacher} is not asked anything under <loss> nll: set <loss> to one of "
                f"{', '.join(DIVERGENCES)}, or leave it out"
            )
        if self.on_policy and self.teacher is None:
            raise ValueError(
                f"<on_policy> {self.on_policy:g} has the target score what the drafter writes: give the target as "
                "<teacher>"
            )
        if (self.feature_weight > 0) != (self.feature_teacher is not None):
            given, missing = (
                (f"<feature_weight> {self.feature_weight:g}", "the dense drafter as <feature_teacher>")
                if self.feature_weight
                else (f"<feature_teacher> {self.feature_teacher}", "<feature_weight>, such as 1")
            )
            raise ValueError(f"{given} does nothing alone: give {missing}, too")
        return self
