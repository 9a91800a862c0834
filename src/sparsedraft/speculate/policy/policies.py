"""How many tokens to draft: a constant, the K that pays best, a confidence stop, or a bandit over such policies.

No policy looks at a token before it is drawn, so all are lossless. They learn from what steps cost and bring, and keep
what they learned from prompt to prompt. K then depends on measured times: under sampling a seed gives the same
distribution, but not the same text.
"""

import math
from collections.abc import Sequence

from sparsedraft.base.errors import UserError
from sparsedraft.speculate.policy.means import Mean
from sparsedraft.speculate.policy.meter import Meter
from sparsedraft.speculate.policy.protocol import Outcome, Policy, always

NAMES = ("constant", "auto", "confidence", "bandit")


class Constant:
    """K drafts in every step."""

    def __init__(self, k: int) -> None:
        if k < 0:
            raise UserError(f"--k {k} is not possible: give 0 (no drafts) or more.")
        self.k = self.most = k

    def next_k(self) -> int:
        return self.k

    @property
    def plain(self) -> bool:
        return self.k == 0

    confident = staticmethod(always)

    def begin(self, prompt: int, room: int) -> None:
        """Nothing to prepare."""

    def observe(self, outcome: Outcome) -> None:
        """Nothing to learn."""


class _Metered:
    """A policy that learns from a meter."""

    meter: Meter
    most: int

    @property
    def plain(self) -> bool:
        return self.meter.measures_target


class Auto(_Metered):
    """The K from 0 to `k_max` whose expected tokens per second are most, from measured costs and acceptance.

    That maximises the improvement factor MAL / (v(K) + K·c), with c and v measured. K = 0 is best below the break-even:
    then the target decodes alone, except for short trials. The drafter is first asked where what is left of the answer
    is expected to save more than its reading of the prompt takes (see Lengths). Trials and reading together cost at
    most 2 % of the time of whole answers, and six plain steps (see LossBudget).

    `reads_freely`: for texts that join while others are under way. What is known of one answer's length says nothing of
    several, and a prompt that is yet to be read would stop the drafts of all; so the drafter reads, whatever it takes.
    """

    def __init__(self, k_max: int = 8, reads_freely: bool = False) -> None:
        self.meter, self.most = Meter(k_max, reads_freely), k_max

    def begin(self, prompt: int, room: int) -> None:
        self.meter.begin(prompt, room)

    def next_k(self) -> int:
        return self.meter.allowed(self.meter.best)

    confident = staticmethod(always)

    def observe(self, outcome: Outcome) -> None:
        self.meter.observe(outcome)


class Confidence(_Metered):
    """Draft on while another token pays: its chance of acceptance × the time a token is worth against its own cost.

    The threshold is rate × (seconds of a draft and of verifying one more), so it adapts to the pair and the machine.
    """

    def __init__(self, k_max: int = 12) -> None:
        self.meter, self.most = Meter(k_max), k_max
        self.threshold = 0.3
        self._tokens, self._seconds = Mean(), Mean()

    def begin(self, prompt: int, room: int) -> None:
        self.meter.begin(prompt, room)

    def next_k(self) -> int:
        return self.meter.allowed(min(self.meter.reach, 2 * self.meter.best))  # a drafter may be too sure of itself

    def confident(self, reach: float) -> bool:
        return reach >= self.threshold

    def observe(self, outcome: Outcome) -> None:
        if (took := self.meter.observe(outcome)) is None:
            return
        self._tokens.add(outcome.emitted)
        self._seconds.add(took)
        n = max(1, round(outcome.drafted))
        seconds = self.meter.estimates.seconds(n) - self.meter.estimates.seconds(n - 1)
        rate = (self._tokens.value or 0.0) / (self._seconds.value or math.inf)
        self.threshold = min(0.9, max(0.02, rate * seconds))


class Bandit(_Metered):
    """UCB over policies: the arm with the most tokens per second so far, plus a bonus for the little tried.

    Rates are ratios of running sums, so a long step weighs what it takes; they forget slowly, so that steps' luck does
    not decide between arms. As for the others, an arm that drafts is not pulled while speculation is behind plain
    decoding.
    """

    def __init__(self, arms: Sequence[Policy], bonus: float = 0.7) -> None:
        self.arms, self.bonus = list(arms), bonus
        self.meter, self.most = Meter(0), max(arm.most for arm in self.arms)
        self._tokens = [Mean(fade=0.99) for _ in self.arms]
        self._seconds = [Mean(fade=0.99) for _ in self.arms]
        self._pulls = 0
        self._at: int | None = None

    def begin(self, prompt: int, room: int) -> None:
        self.meter.begin(prompt, room)
        for arm in self.arms:
            arm.begin(prompt, room)

    def next_k(self) -> int:
        best = max(self._rate(arm) for arm in range(len(self.arms)))
        arm = max(range(len(self.arms)), key=lambda arm: self._score(arm, best))
        k = self.arms[arm].next_k()
        allowed = self.meter.allowed(k) if k else 0
        self._at = arm if 0 < k == allowed else None
        return allowed

    def _rate(self, arm: int) -> float:
        """Tokens per second so far; 0 where it was not tried."""
        return (self._tokens[arm].value or 0.0) / (self._seconds[arm].value or math.inf)

    def _score(self, arm: int, best: float) -> float:
        weight = self._tokens[arm].weight
        if not weight:
            return math.inf
        return self._rate(arm) + self.bonus * best * math.sqrt(math.log(1 + self._pulls) / weight)

    def confident(self, reach: float) -> bool:
        return True if self._at is None else self.arms[self._at].confident(reach)

    def observe(self, outcome: Outcome) -> None:
        took = self.meter.observe(outcome)
        for arm in self.arms:
            arm.observe(outcome)
        if self._at is None or took is None:
            return
        self._pulls += 1
        self._tokens[self._at].add(outcome.emitted)
        self._seconds[self._at].add(took)


def policy_named(name: str, k: int | None = None) -> Policy:
    """The policy called `name`; `k` is the constant, or the most that the others draft. UserError if there is none."""
    if name == "constant":
        return Constant(5 if k is None else k)
    if name not in NAMES:
        raise UserError(f"--policy {name} is not known: choose one of {', '.join(NAMES)}.")
    if k is not None and k < 1:
        raise UserError(f"--k {k} leaves --policy {name} nothing to choose from: give 1 or more.")
    if name == "auto":
        return Auto(k or 8)
    if name == "confidence":
        return Confidence(k or 12)
    top = k or 8
    arms: list[Policy] = [Constant(n) for n in sorted({1, 2, 3, 5, 8, top}) if n <= top]
    return Bandit([*arms, Confidence(top)])
