"""What `auto` learned of a pair on a machine, as data that outlives the process.

Nothing in it is trusted: numbers are finite and bounded, and what they decide is how fast the next answer is, never
what it says.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparsedraft.speculate.policy.estimates import Costs
from sparsedraft.speculate.policy.lengths import Ended, Lengths
from sparsedraft.speculate.policy.means import Mean, Recent
from sparsedraft.speculate.policy.meter import Meter

VERSION: Literal[2] = 2  # 1 booked as losses of the drafts what was look-up's time, or a busy machine's
# Of the time that trials earned before, as much as pays for the loss of 10 plain steps.
SPENT = 1000  # plain steps

Seconds = Annotated[float, Field(ge=0, lt=1e5, allow_inf_nan=False)]
Account = Annotated[float, Field(gt=-1e7, lt=1e7, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, lt=1e7, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=0, lt=1 << 31)]
Drafts = Annotated[int, Field(ge=1, lt=1 << 16)]

ByDrafts = Annotated[dict[Drafts, Annotated[list[Seconds], Field(min_length=1, max_length=8)]], Field(max_length=256)]


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class KeptMean(_Schema):
    """A `Mean`: its sum and its weight."""

    sum: Weight
    weight: Weight


class KeptShare(KeptMean):
    """A mean of shares."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.sum > self.weight * (1 + 1e-9):
            raise ValueError("a share above 1")
        return self


class KeptDifference(_Schema):
    """A mean of differences between shares."""

    sum: Account
    weight: Weight

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if abs(self.sum) > self.weight * (1 + 1e-9):
            raise ValueError("a difference above 1")
        return self


class KeptCosts(_Schema):
    """`Costs`, in seconds."""

    plain: Annotated[list[Annotated[Seconds, Field(gt=0)]], Field(max_length=8)]
    draft: Annotated[list[Seconds], Field(max_length=8)]
    drafts: Annotated[int, Field(ge=0, le=2)]
    verify: ByDrafts
    passes: ByDrafts = Field(default_factory=dict)
    reading: KeptMean
    catching_up: KeptMean
    target_reading: KeptMean


class KeptState(_Schema):
    """What a meter learned. `costs`: by the bit length of the number of rows. `lengths`: [prompt, answer], tokens."""

    version: Literal[2] = VERSION
    acceptance: KeptShare
    usual: KeptShare
    places: Annotated[list[KeptDifference], Field(max_length=256)]
    lengths: Annotated[list[Annotated[list[Tokens], Field(min_length=2, max_length=2)]], Field(max_length=Lengths.MOST)]
    costs: Annotated[dict[Drafts, KeptCosts], Field(max_length=32)]
    spent: Seconds
    lost: Account
    saved: Account
    longest: Seconds


def state_of(meter: Meter) -> KeptState:
    """What `meter` learned. ValueError (of pydantic) for what no machine measures, such as steps of days."""
    e, budget = meter.estimates, meter.budget
    plain = e.plain or 0.0
    return KeptState(
        acceptance=_kept_share(e.acceptance),
        usual=_kept_share(e.usual),
        places=[KeptDifference(sum=mean.sum, weight=mean.weight) for mean in e.places[:256]],
        lengths=[[past.prompt, past.tokens] for past in meter.lengths.past],
        costs={bits: _kept_costs(costs) for bits, costs in e.by_rows.items() if bits},
        spent=min(budget.spent, SPENT * plain),
        lost=budget.lost,
        saved=budget.saved,
        longest=budget.longest,
    )


def give(state: KeptState, meter: Meter) -> None:
    """Let the new `meter` start from what `state` holds. It measures the target again soon: the machine may be busy."""
    e, budget = meter.estimates, meter.budget
    meter.first_plain = meter.FIRST_PLAIN_AGAIN
    e.places = [Mean(e.FADE_OF_USUAL) for _ in state.places]
    pairs: list[tuple[Mean, KeptShare | KeptDifference]] = [*zip(e.places, state.places, strict=True)]
    pairs += [(e.acceptance, state.acceptance), (e.usual, state.usual)]
    for mean, kept in pairs:
        mean.sum, mean.weight = kept.sum, kept.weight
    meter.lengths.past.extend(Ended(prompt, tokens) for prompt, tokens in state.lengths)
    for rows, costs in state.costs.items():
        e.by_rows[rows] = _costs(costs)
    if 1 in e.by_rows:  # until the first step says how many rows there are
        e.costs = e.by_rows[1]
    plain = e.plain or 0.0
    budget.lost, budget.longest = max(state.lost, -budget.GAINS * plain), state.longest
    budget.spent = min(state.spent, SPENT * plain)
    budget.saved = min(state.saved, max(budget.SAVED * plain, budget.READINGS * budget.longest))


def _kept(mean: Mean) -> KeptMean:
    return KeptMean(sum=mean.sum, weight=mean.weight)


def _kept_share(mean: Mean) -> KeptShare:
    return KeptShare(sum=mean.sum, weight=mean.weight)


def _kept_costs(costs: Costs) -> KeptCosts:
    return KeptCosts(
        plain=[*costs.plain.last],
        draft=[*costs.draft.last],
        drafts=costs.drafts,
        verify={n: [*recent.last] for n, recent in costs.verify.items()},
        passes={n: [*recent.last] for n, recent in costs.passes.items()},
        reading=_kept(costs.reading),
        catching_up=_kept(costs.catching_up),
        target_reading=_kept(costs.target_reading),
    )


def _costs(kept: KeptCosts) -> Costs:
    costs = Costs()
    _fill(costs.plain, kept.plain)
    _fill(costs.draft, kept.draft)
    costs.drafts = kept.drafts if kept.draft else 0
    for n, values in kept.verify.items():
        _fill(costs.verify.setdefault(n, Recent()), values)
    for n, values in kept.passes.items():
        _fill(costs.passes.setdefault(n, Recent()), values)
    for name in ("reading", "catching_up", "target_reading"):
        mean, values = getattr(costs, name), getattr(kept, name)
        mean.sum, mean.weight = values.sum, values.weight
    return costs


def _fill(recent: Recent, values: Iterable[float]) -> None:
    for value in values:
        recent.add(value)
