"""The sections of a recipe: those of the stages, with what only a recipe says."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sparsedraft.base import bounds
from sparsedraft.base.fields import BatchSize, Dtype, MaxNewTokens
from sparsedraft.base.options import Options
from sparsedraft.base.places import slug
from sparsedraft.stages.distill.options import DistillSettings, check_source
from sparsedraft.stages.evaluate.options import EvaluateSettings, K
from sparsedraft.stages.finetune.options import FinetuneSettings
from sparsedraft.stages.pack.options import Ends, Weights
from sparsedraft.stages.prune.options import DropLayersSettings, not_sexagesimal


class Distill(DistillSettings):
    """The target writes the data."""

    prompts: str | None = "demo:train"  # None: the target writes them, too (magpie)
    weights: Weights | None = None  # native engine: the target is packed first; None: it is not
    stored: str | None = None  # a data folder that the target wrote before; None: it writes the data now
    again: int = Field(20, ge=0, le=10_000)  # answers of `stored` that it writes again, and that must agree

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        check_source(self.mode, self.prompts)
        if self.stored is not None and self.engine != "native":
            raise ValueError(
                f"stored {self.stored} is checked with the engine native, on which answers are the same again: set it"
            )
        if self.weights and self.engine != "native":
            raise ValueError(
                f"weights {self.weights} are of a packed target, which only the engine native runs: set it"
            )
        return self


class Finetune(FinetuneSettings):
    """Sparse fine-tuning; a drafter's own `finetune` entry overrides these, field by field.

    The teacher is the recipe's target, the feature teacher its dense drafter.
    """

    dtype: Literal["float32", "bfloat16"] | None = None  # None: the recipe's
    teacher: bool = False  # True: the target in memory, also where distill stored the log-probabilities that would do


class Drafter(Options):
    """One drafter: made from another (`start`) or the recipe's dense drafter, pruned, cut or trained.

    `gradual`: sparsities (or N:M with a larger N) on the way to that of `prune`, each followed by fine-tuning.
    """

    name: str = Field(min_length=1)
    start: str | None = None
    prune: dict[str, Any] | None = None
    drop_layers: DropLayersSettings | None = None
    gradual: list[float | str] = Field(default_factory=list)
    finetune: bool | dict[str, Any] = False
    report: bool = True  # False: only a step on the way to another

    @field_validator("gradual", mode="before")
    @classmethod
    def _not_sexagesimal(cls, value: Any) -> Any:
        return [not_sexagesimal(item) for item in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.prune is not None and self.drop_layers is not None:
            raise ValueError("takes either prune or drop_layers, not both")
        if self.gradual and (self.prune is None or not self.trained):
            raise ValueError("gradual prunes and fine-tunes in turns: set prune and finetune, too")
        return self

    @property
    def trained(self) -> bool:
        """Whether it is fine-tuned; `finetune: {}` counts."""
        return self.finetune is not False

    @property
    def needs(self) -> dict[str, str]:
        """The drafters that this one is made from or matched to, by the field that names them."""
        matched = self.drop_layers.match_macs if self.drop_layers else None
        names = {"start": self.start, "drop_layers.match_macs": matched}
        return {field: name for field, name in names.items() if name is not None}

    @property
    def stages(self) -> list[str]:
        """The folders that its stages make, in their order."""
        steps = [f"{stage}-{number}" for number in range(1, len(self.gradual) + 1) for stage in ("pruned", "finetuned")]
        last = {
            "pruned": self.prune is not None, "layer-dropped": self.drop_layers is not None, "finetuned": self.trained
        }  # fmt: skip
        return [*steps, *(stage for stage, made in last.items() if made)]

    @property
    def slug(self) -> str:
        """The name as a folder name on any file system."""
        return slug(self.name)


class Eval(EvaluateSettings):
    """Evaluation on prompts that no stage has seen."""

    prompts: str = "demo:eval"
    simulate: bool = True
    max_new_tokens: MaxNewTokens = 64
    dtype: Dtype | None = None  # None: the recipe's

    @field_validator("uag", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # as YAML 1.1 reads a bare off

    @model_validator(mode="after")
    def _numbered(self) -> Self:
        if not self.numbers:
            raise ValueError("k needs at least one number of drafted tokens")
        return self

    @property
    def reading(self) -> dict[str, Any]:
        """How drafters read and write, for other evaluations of the same run."""
        return {name: getattr(self, name) for name in ("uag", "drafting", "drafter_window", "drafter_sinks")}


class Speed(Options):
    """Every drafter packed, and timed in the real loop against the target alone, on the first of eval's prompts."""

    weights: Weights = "int8"  # of the packed drafters
    head_weights: Ends | None = None  # of their heads; None: as --weights, int8 where that is int4
    embedding_weights: Ends | None = None  # of their embeddings; None: as the head's
    calibration_tokens: int | None = Field(
        None, ge=1, le=bounds.TOKENS
    )  # int4 is rounded on so many tokens of the data; None: by least squares
    head_tokens: int | None = Field(None, ge=1, le=bounds.VOCABULARY)  # trims heads to the data's most frequent tokens
    head_follows: bool = False  # heads stay whole, and drafts look at those tokens and at the text's own
    pack_target: bool = False  # the target, too
    lookup: bool = False  # each drafter also with look-up beside it
    k: tuple[K, ...] = Field((1, 2, 3, "auto"), min_length=1)
    limit: BatchSize = 8
    max_new_tokens: MaxNewTokens = 64
    acceptance: bool = False  # evaluate them as `eval` does, too: what rounding and the trimmed head cost

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.calibration_tokens is not None and self.weights != "int4":
            raise ValueError(
                f"calibration_tokens {self.calibration_tokens} are to round int4, and weights are {self.weights}: set "
                "weights to int4, or leave calibration_tokens out"
            )
        if self.head_follows and self.head_tokens is None:
            raise ValueError("head_follows true needs head_tokens: say how many tokens drafts always look at")
        return self

    @property
    def trim(self) -> dict[str, Any]:
        """How `pack` trims heads; empty where it does not."""
        if self.head_tokens is None:
            return {}
        return {"head_tokens": self.head_tokens} | ({"head_follows": True} if self.head_follows else {})
