"""The recipe: one typed YAML file for the whole job, with dotted overrides; the unknown and impossible are errors."""

import difflib
import re
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator
from yaml import YAMLError

from sparsedraft.base import bounds
from sparsedraft.base.errors import UserError
from sparsedraft.base.fields import BatchSize, Device, Dtype, MaxNewTokens, Out, Replacing, Seed
from sparsedraft.base.options import Argument, Options, StageOptions
from sparsedraft.base.places import slug
from sparsedraft.base.yamlfiles import read_yaml
from sparsedraft.maths.pattern import Pattern
from sparsedraft.stages.distill.options import DistillSettings, Rules, check_source
from sparsedraft.stages.evaluate.options import EvaluateSettings, K
from sparsedraft.stages.finetune.options import FinetuneSettings
from sparsedraft.stages.pack.options import Weights
from sparsedraft.stages.prune.options import DropLayersSettings, PruneSettings, not_sexagesimal
from sparsedraft.writers.server.secret import shown


class Distill(DistillSettings):
    """The target writes the data."""

    prompts: str | None = "demo:train"  # None: the target writes them, too (magpie)
    weights: Weights | None = None  # native engine: the target is packed first; None: it is not

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        check_source(self.mode, self.prompts)
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


class Speed(Options):
    """Every drafter packed, and timed in the real loop against the target alone, on the first of eval's prompts."""

    weights: Weights = "int8"  # of the packed drafters
    head_tokens: int | None = Field(None, ge=1, le=bounds.VOCABULARY)  # trims heads to the data's most frequent tokens
    pack_target: bool = False  # the target, too
    k: tuple[K, ...] = Field((1, 2, 3, "auto"), min_length=1)
    limit: BatchSize = 8
    max_new_tokens: MaxNewTokens = 64
    acceptance: bool = False  # evaluate them as `eval` does, too: what rounding and the trimmed head cost


class Recipe(Options):
    """The whole job: target, drafter, and what each stage does."""

    target: str
    drafter: str | None = None  # None: the target itself
    seed: Seed = 0
    device: Device = "cpu"
    dtype: Dtype = "float32"
    allow_overlap: bool = False
    template_args: dict[str, JsonValue] = Field(
        default_factory=dict
    )  # of the chat templates, such as enable_thinking: false
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
        _ = self.ordered
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
    def ordered(self) -> list[Drafter]:
        """The drafters, each after those that it is made from or matched to. ValueError where these go in a circle."""
        known = {entry.name: entry for entry in self.drafters}
        sorter = TopologicalSorter({name: entry.needs.values() for name, entry in known.items()})
        try:
            sorter.prepare()
        except CycleError as error:
            raise ValueError(f"drafter '{error.args[1][0]}' is made from itself by its start or match_macs") from None
        found: list[Drafter] = []
        ready: set[str] = set()
        while sorter.is_active():  # of those that can be made, the recipe's first
            ready |= {*sorter.get_ready()}
            name = next(name for name in known if name in ready)
            ready.remove(name)
            sorter.done(name)
            found.append(known[name])
        return found

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


class RunOptions(Replacing):
    """What `run` makes."""

    recipe: Annotated[Path, Argument()] = Field(description="Recipe file (YAML).")
    overrides: Annotated[tuple[str, ...], Argument()] = Field(
        (), description="section.field=value, as many as you like."
    )
    out: Out = Path("runs/run")


class PlanOptions(StageOptions):
    """What `plan` looks at."""

    recipe: Annotated[Path, Argument()] = Field(description="Recipe file (YAML).")
    overrides: Annotated[tuple[str, ...], Argument()] = Field(
        (), description="section.field=value, as many as you like."
    )
    gflops: float | None = Field(None, ge=0.001, description="Device speed, Gflop/s; default: measured here.")


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
    sections = (Recipe, Distill, Rules, PruneSettings, DropLayersSettings, Finetune, Drafter, Eval, Speed)
    return sorted({name for section in sections for name in section.model_fields})


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `read` reads back, but for passwords and keys in the addresses of servers."""
    plain = recipe.model_dump(mode="json")
    for section in plain.values():
        if isinstance(section, dict) and section.get("url"):
            section["url"] = shown(section["url"])
    return OmegaConf.to_yaml(OmegaConf.create(plain))
