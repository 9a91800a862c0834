"""The recipe: one typed YAML file for the whole job, with dotted overrides; the unknown and impossible are errors."""

import difflib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from yaml import YAMLError

from sparsedraft.base import bounds
from sparsedraft.base.errors import UserError
from sparsedraft.base.places import slug
from sparsedraft.base.yamlfiles import read_yaml
from sparsedraft.maths.pattern import Pattern
from sparsedraft.stages.distill.cleaner import Rules
from sparsedraft.stages.prune.options import DropLayersSettings, PruneSettings, not_sexagesimal
from sparsedraft.writers.server.secret import shown

Length = Annotated[int, Field(ge=1, le=bounds.LENGTH)]  # tokens
Budget = Annotated[int, Field(ge=1, le=bounds.TOKENS)]
Rows = Annotated[int, Field(ge=1, le=bounds.ROWS)]
Steps = Annotated[int, Field(ge=1, le=bounds.STEPS)]
Prompts = Annotated[int, Field(ge=1, le=bounds.PROMPTS)]
Calls = Annotated[int, Field(ge=1, le=bounds.CALLS)]


def _number_or_policy(value: object) -> object:
    if (type(value) is int and 1 <= value <= bounds.DRAFTED) or value in ("auto", "confidence", "bandit"):
        return value
    raise PydanticCustomError("k", f"K is a whole number from 1 to {bounds.DRAFTED}, or auto, confidence or bandit")


K = Annotated[int | str, BeforeValidator(_number_or_policy)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Distill(Section):
    """The target writes the data. Lengths in tokens."""

    prompts: str | None = "demo:train"  # None: the target writes them, too (magpie)
    mode: Literal["respond", "rewrite", "magpie"] = "respond"
    engine: Literal["transformers", "native", "endpoint"] = "transformers"
    weights: Literal["f16", "bf16", "int8"] | None = None  # native engine: the target is packed first; None: it is not
    url: str | None = None  # of the endpoint's server, ".../v1"
    served_name: str | None = None  # the target's name there; None: as the recipe calls it
    concurrency: Calls = 16  # calls under way at once
    timeout: float = Field(300.0, gt=0)  # longest silence in a call, seconds; a whole call: 4 times that
    retries: int = Field(6, ge=0, le=bounds.RETRIES)
    retry_wait: float = Field(0.5, ge=0)  # seconds before the first more try; doubles each time
    workers: int = Field(1, ge=1, le=bounds.WORKERS)  # above 1: Ray actors, each with its own engine
    max_new_tokens: Length = 256
    temperature: float = Field(0.0, ge=0)  # 0: greedy
    top_k: int = Field(0, ge=0, le=bounds.VOCABULARY)  # 0: off
    top_p: float = Field(1.0, gt=0, le=1)
    prompt_temperature: float = Field(1.0, gt=0)  # at which magpie writes prompts
    openings: list[str] = []  # what these begin with, in turns
    samples: int = Field(1, ge=1, le=bounds.SAMPLES)  # answers per prompt
    top_k_logprobs: int = Field(0, ge=0, le=bounds.LIKELIEST)  # likeliest tokens that are kept for the kl loss
    batch_size: Rows = 32  # rows decoded at once
    limit: Prompts | None = None  # prompts, from the first; for magpie: how many to write
    skip_bad: bool = False  # leave out, and count, prompts that cannot be read or do not fit, or are refused
    rules: Rules = Rules()

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the `distill` stage, but for the prompts."""
        return {**self.model_dump(exclude={"prompts", "rules", "weights"}), "rules": self.rules}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.openings and self.mode != "magpie":
            raise ValueError(f"openings are of prompts that the target writes, not of mode {self.mode}: leave them out")
        if (self.mode == "magpie") != (self.prompts is None):
            given = "null" if self.prompts is None else self.prompts
            raise ValueError(
                f"prompts {given} and mode {self.mode} do not go together: magpie writes the prompts itself (null), "
                "the other modes answer a file's"
            )
        if self.mode == "magpie" and self.limit is None:
            raise ValueError("limit must say how many conversations mode magpie is to write: set it")
        if self.weights and self.engine != "native":
            raise ValueError(
                f"weights {self.weights} are of a packed target, which only the engine native runs: set it"
            )
        return self


class Finetune(Section):
    """Sparse fine-tuning; a drafter's own `finetune` entry overrides these, field by field.

    See `stages.finetune.loop.Settings`. Lengths and budgets in tokens. The teacher is the recipe's target, the
    feature teacher its dense drafter.
    """

    loss: Literal["nll", "kl", "reverse-kl", "tvd"] = "nll"
    dtype: Literal["float32", "bfloat16"] | None = None  # None: the recipe's
    nll_weight: float = Field(0.0, ge=0, le=1)  # w of (1 - w) · loss + w · nll
    teacher: bool = False  # True: the target in memory, also where distill stored the log-probabilities that would do
    on_policy: float = Field(0.0, ge=0, le=1)  # share of the rows that the drafter writes itself
    feature_weight: float = Field(0.0, ge=0)  # of SquareHead's term; 0: off
    quantize: Literal["none", "int8", "int4"] = "none"
    reselect_every: int = Field(0, ge=0, le=bounds.STEPS)  # steps between moves of the mask; 0: it stays
    reselect_share: Share = 0.1  # of the surviving weights, at the first move
    tokens: Budget | None = None  # None: each sample once
    learning_rate: float = Field(1e-4, gt=0, lt=1)
    warmup: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    sequence_length: int = Field(512, ge=2, le=bounds.LENGTH)
    rows_per_step: Rows = 2
    train_embeddings: bool = True
    gradient_checkpointing: bool = False
    patience: int = Field(0, ge=0, le=bounds.STEPS)  # validations without a new best; 0: train to the end
    validate_every: Steps = 25
    save_every: Steps = 25
    validation_prompts: Prompts = 16

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name in ("nll_weight", "on_policy"):
            if self.loss == "nll" and getattr(self, name):
                raise ValueError(
                    f"{name} needs a loss that compares with the target: set loss to kl, reverse-kl or tvd"
                )
        if self.on_policy and self.nll_weight == 1:
            raise ValueError("nll_weight 1 leaves nothing to learn from the drafter's own text (on_policy): lower it")
        return self


class Drafter(Section):
    """One drafter: made from another (`start`) or the recipe's dense drafter, pruned, cut or trained.

    `gradual`: sparsities (or N:M with a larger N) on the way to that of `prune`, each followed by fine-tuning.
    """

    name: str = Field(min_length=1)
    start: str | None = None
    prune: dict[str, Any] | None = None
    drop_layers: DropLayersSettings | None = None
    gradual: list[float | str] = []
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
        wanted = {"start": self.start, "drop_layers.match_macs": matched}
        return {field: name for field, name in wanted.items() if name is not None}

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


class Eval(Section):
    """Evaluation on prompts that no stage has seen."""

    prompts: str = "demo:eval"
    k: list[K] = [1, 2, 3, 5, 8]
    temperature: float = Field(0.0, ge=0)
    top_k: int = Field(0, ge=0, le=bounds.VOCABULARY)
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    simulate: bool = True
    uag: Literal["auto", "realign", "intersection", "off"] = "auto"
    tree: int = Field(1, ge=1, le=bounds.DRAFTED)  # branching of draft trees
    max_new_tokens: Length = 64
    batch_size: Rows = 32
    limit: Prompts | None = None  # prompts
    spread: bool = False  # at equal distances through the file, not its first
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: the recipe's
    url: str | None = None  # of a server that runs the target, ".../v1": greedily and simulated only
    served_name: str | None = None  # the target's name there; None: as the recipe calls it
    concurrency: Calls = 16

    @field_validator("uag", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # as YAML 1.1 reads a bare off

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not any(isinstance(k, int) for k in self.k):
            raise ValueError("k needs at least one number of drafted tokens")
        if self.simulate and (self.tree > 1 or any(isinstance(k, str) for k in self.k)):
            raise ValueError("trees and policies need the real loop: set simulate to false")
        if self.url is not None and not (self.simulate and self.temperature == 0 and self.repetition_penalty == 1):
            raise ValueError("url: what a server says tells of greedy drafting alone: set simulate, and no temperature")
        return self


class Speed(Section):
    """Every drafter packed, and timed in the real loop against the target alone, on the first of eval's prompts."""

    weights: Literal["f16", "bf16", "int8"] = "int8"  # of the packed drafters
    head_tokens: int | None = Field(None, ge=1, le=bounds.VOCABULARY)  # trims heads to the data's most frequent tokens
    pack_target: bool = False  # the target, too
    k: list[K] = Field([1, 2, 3, "auto"], min_length=1)
    limit: Rows = 8
    max_new_tokens: Length = 64
    acceptance: bool = False  # evaluate them as `eval` does, too: what rounding and the trimmed head cost


class Recipe(Section):
    """The whole job: target, drafter, and what each stage does."""

    target: str
    drafter: str | None = None  # None: the target itself
    seed: int = Field(0, ge=0, le=bounds.SEED)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    allow_overlap: bool = False
    template_args: dict[str, JsonValue] = {}  # of the chat templates, such as enable_thinking: false
    distill: Distill = Distill()
    prune: PruneSettings = PruneSettings()
    finetune: Finetune = Finetune()
    drafters: list[Drafter] = Field(min_length=1)
    baseline: str | None = (
        None  # that the report's headline compares with; None: layer-pruned+distilled, if there is one
    )
    eval: Eval = Eval()
    sampled: Eval | None = None  # a second evaluation, under sampling; None: there is none
    speed: Speed | None = None  # None: nothing is packed or timed

    @field_validator("sampled")
    @classmethod
    def _warm(cls, value: Eval | None) -> Eval | None:
        if value is not None and value.temperature == 0:
            raise ValueError("is the evaluation under sampling: set its temperature above 0")
        return value

    @model_validator(mode="after")
    def _names(self) -> Self:
        known: dict[str, Drafter] = {}
        for entry in self.drafters:
            if entry.name in known or entry.slug in {other.slug for other in known.values()}:
                raise ValueError(f"drafter name '{entry.name}' occurs twice")
            known[entry.name] = entry
            self.prunings(entry)
            self.finetune_of(entry)
        for entry in self.drafters:
            for field, name in entry.needs.items():
                if name not in known:
                    raise ValueError(f"drafter '{entry.name}' has {field} '{name}', which no drafter is called")
            seen: set[str] = set()
            ahead = {entry.name}
            while ahead := {n for name in ahead for n in known[name].needs.values() if n in known} - seen:
                seen |= ahead
            if entry.name in seen:
                raise ValueError(f"drafter '{entry.name}' is made from itself by its start or match_macs")
        half = any(entry.trained and not self.finetune_of(entry).dtype for entry in self.drafters)
        if self.dtype == "float16" and half:
            raise ValueError("dtype float16 is no arithmetic to train in: set float32 or bfloat16")
        if not any(entry.report for entry in self.drafters):
            raise ValueError("no drafter has report: true, so there is nothing to evaluate")
        if self.baseline is not None and not any(e.report and e.name == self.baseline for e in self.drafters):
            raise ValueError(f"baseline '{self.baseline}' is no drafter that is evaluated: name one with report: true")
        for entry in filter(lambda entry: entry.trained, self.drafters):
            how, line = self.finetune_of(entry), self.lineage(entry)
            if self.distill.weights and self.needs_teacher(entry):
                raise ValueError(
                    f"drafter '{entry.name}' learns from the target itself, and distill.weights {self.distill.weights} "
                    "lets a rounded one write the data: set distill.top_k_logprobs, or leave out distill.weights"
                )
            if how.feature_weight and any(other.drop_layers for other in line):
                raise ValueError(
                    f"drafter '{entry.name}' has lost layers, so feature_weight has none to compare with: give it "
                    "finetune: {feature_weight: 0}"
                )
            if how.reselect_every and not any(other.prune is not None for other in line):
                raise ValueError(
                    f"drafter '{entry.name}' has no mask that reselect_every could move: give it "
                    "finetune: {reselect_every: 0}"
                )
        return self

    @property
    def dense(self) -> str:
        """The model that all drafters are made from."""
        return self.drafter or self.target

    def lineage(self, entry: Drafter) -> list[Drafter]:
        """`entry`, the drafter it starts from, the one that starts from, ..."""
        start = next((other for other in self.drafters if other.name == entry.start), None)
        return [entry, *(self.lineage(start) if start else [])]

    def prune_of(self, entry: Drafter) -> PruneSettings:
        """How `entry` is pruned: the recipe's `prune` with the entry's own fields on top."""
        return PruneSettings.model_validate({**self.prune.model_dump(), **(entry.prune or {})})

    def prunings(self, entry: Drafter) -> list[PruneSettings]:
        """How `entry` is pruned, step by step: `gradual`, then `prune_of`; empty where it is not."""
        if entry.prune is None:
            return []
        last = self.prune_of(entry)
        kind = Pattern.parse(last.pattern)
        steps = [
            PruneSettings.model_validate(
                last.model_dump() | ({"pattern": at, "sparsity": None} if kind.m else {"sparsity": at})
            )
            for at in entry.gradual
        ]
        patterns = [Pattern.parse(how.pattern) for how in (*steps, last)]
        shares = [pattern.resolve(how.sparsity) for pattern, how in zip(patterns, (*steps, last), strict=True)]
        if any(a >= b for a, b in pairwise(shares)) or any(pattern.m != kind.m for pattern in patterns):
            raise ValueError(
                f"drafter '{entry.name}' has gradual {', '.join(map(str, entry.gradual))}, which does not rise to "
                f"{kind if kind.m else shares[-1]}: each step must prune more than the one before"
                + (f", in groups of {kind.m}" if kind.m else "")
            )
        return [*steps, last]

    def finetune_of(self, entry: Drafter) -> Finetune:
        """How `entry` is fine-tuned: the recipe's `finetune` with the entry's own fields on top."""
        own = entry.finetune if isinstance(entry.finetune, dict) else {}
        return Finetune.model_validate({**self.finetune.model_dump(), **own})

    def needs_teacher(self, entry: Drafter) -> bool:
        """Whether fine-tuning `entry` takes the target in memory: where stored log-probabilities are not enough."""
        how = self.finetune_of(entry)
        return how.loss != "nll" and (how.teacher or how.on_policy > 0 or not self.distill.top_k_logprobs)

    def budgets(self, entry: Drafter, epoch: int) -> list[int | None]:
        """Training tokens of each fine-tuning of `entry`: its budget (None: one `epoch`) divided over its prunings."""
        total, parts = self.finetune_of(entry).tokens, len(entry.gradual) + 1
        if parts == 1:
            return [total]
        total = total or epoch
        return [max(1, total * (i + 1) // parts - total * i // parts) for i in range(parts)]


def read(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `section.field=value` overrides applied.

    Raises UserError in one sentence that names the key, the value and the mend.
    """
    if not path.is_file():
        raise UserError(f"recipe {path}: there is no such file; check the path.")
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override '{override}' is not of the form section.field=value.")
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise UserError(f"recipe {path} is not a mapping: it starts with 'target: ...'.")
    if odd := [key for key in found if not isinstance(key, str)]:
        raise UserError(f"recipe {path} has the key {odd[0]!r}, which is no name: take it out.")
    try:
        base = OmegaConf.load(path)  # whose 1e-4 is a number
        tree = OmegaConf.merge(base, OmegaConf.from_dotlist(list(overrides)))
        data = OmegaConf.to_container(tree, resolve=True)
    except TypeError:
        raise UserError(
            f"override {' '.join(overrides)}: a list such as drafters cannot be changed item by item; edit the file."
        ) from None
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"recipe {path} is not readable YAML ({' '.join(str(error).split())[:300]}).") from None
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(f"recipe {path}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    """The first complaint of pydantic as one sentence."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "recipe"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(), n=1)
        return f"{where} is not a known key" + (f"; did you mean {near[0]}?" if near else "; take it out.")
    if first["type"] == "missing":
        return f"{where} is missing; set it."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        plain = re.sub(r"<(\w+)>", r"\1", message).rstrip(".")
        return f"{where}: {plain}."
    return f"{where} = {first['input']!r} is not possible: {message[0].lower()}{message[1:]}."


def _known_keys() -> list[str]:
    sections = (Recipe, Distill, PruneSettings, DropLayersSettings, Finetune, Drafter, Eval, Speed)
    return sorted({name for section in sections for name in section.model_fields})


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `read` reads back, but for passwords and keys in the addresses of servers."""
    plain = recipe.model_dump(mode="json")
    for section in plain.values():
        if isinstance(section, dict) and section.get("url"):
            section["url"] = shown(section["url"])
    return OmegaConf.to_yaml(OmegaConf.create(plain))
