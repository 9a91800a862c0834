"""The whole recipe, and what follows from it for each drafter."""

from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Self

from pydantic import Field, JsonValue, field_validator, model_validator

from sparsedraft.base.fields import Device, Dtype, Seed
from sparsedraft.base.options import Options
from sparsedraft.maths.pattern import Pattern
from sparsedraft.recipe.sections import Distill, Drafter, Eval, Finetune, Speed
from sparsedraft.stages.prune.options import PruneSettings


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
        order: list[Drafter] = []
        ready: set[str] = set()
        while sorter.is_active():  # of those that can be made, the recipe's first
            ready |= {*sorter.get_ready()}
            name = next(name for name in known if name in ready)
            ready.remove(name)
            sorter.done(name)
            order.append(known[name])
        return order

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
                last.model_dump()
                | {"quantize": "none"}
                | ({"pattern": at, "sparsity": None} if kind.m else {"sparsity": at})
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
        fields = entry.finetune if isinstance(entry.finetune, dict) else {}
        return Finetune.model_validate({**self.finetune.model_dump(), **fields})

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
