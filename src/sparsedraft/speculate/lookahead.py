"""How many tokens to draft: a constant, the K that pays best, a confidence stop, or a bandit over such policies.

None of them looks at a token before it is drawn, so all are lossless. They learn from what steps cost and bring, and
keep what they learned from prompt to prompt. With measured times, K depends on the machine's mood: under sampling a
seed then gives the same distribution, not the same text.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sparsedraft.errors import UserError

WORST = 0.02  # share of the time that speculation may lose before it must pause
FADE = 0.95  # weight of the past in running means
NAMES = ("constant", "auto", "confidence", "bandit")


@dataclass(frozen=True)
class Outcome:
    """What one step took and gave: means over its rows, times in seconds. `first`: a model read its prompt, too."""

    drafted: float
    accepted: float
    emitted: float
    draft_seconds: float
    step_seconds: float  # drafting included
    first: bool = False


class Policy(Protocol):
    """Decides, step by step, how many tokens to draft."""

    def wanted(self) -> int:
        """At most how many in the next step."""
        ...

    def confident(self, reach: float) -> bool:
        """Whether to draft a token that is accepted with probability `reach`, by the drafter's own reckoning."""
        ...

    def observe(self, outcome: Outcome) -> None:
        """Learn from a step."""
        ...


def always(reach: float) -> bool:
    """The confidence rule that never stops; whoever sees it need not know `reach`."""
    return True


class Constant:
    """K drafts in every step."""

    def __init__(self, k: int) -> None:
        if k < 0:
            raise UserError(f"--k {k} is not possible: give 0 (no drafts) or more.")
        self.k = k

    def wanted(self) -> int:
        return self.k

    confident = staticmethod(always)

    def observe(self, outcome: Outcome) -> None:
        """Nothing to learn."""


class Mean:
    """A running mean that forgets."""

    def __init__(self, fade: float = FADE) -> None:
        self.sum = self.weight = 0.0
        self.fade = fade

    def add(self, value: float, weight: float = 1.0) -> None:
        self.sum, self.weight = self.sum * self.fade + value * weight, self.weight * self.fade + weight

    def forget(self, share: float) -> None:
        """Count this share of what was added no more."""
        self.sum, self.weight = self.sum * (1 - share), self.weight * (1 - share)

    @property
    def value(self) -> float | None:
        return self.sum / self.weight if self.weight else None


class Meter:
    """What steps cost: of a plain one, of verifying n drafts, of a draft; the acceptance; and what speculation lost."""

    FIRST = 1, 10  # steps after which a plain one measures the target alone again, as the first one is often slow
    REFRESH = 100  # and every how many from there on
    GAINS = 5  # plain steps' time that speculation may lose again of what it has gained
    CREDIT = 2  # plain steps' time that speculation may lose at first, so that short runs learn what it is worth
    EXPECTED = 0.7, 5  # acceptance, as if so many drafts had shown it: three unlucky ones are no verdict
    FORGOTTEN = 0.7  # share of the acceptance so far that does not count in the next answer, whose kind is its own
    TRIAL = 3  # drafts of a step that finds out whether speculation pays by now

    def __init__(self, k_max: int) -> None:
        self.k_max = k_max
        self.alone: deque[float] = deque(maxlen=7)  # of plain steps
        self.verify: dict[int, Mean] = {}  # by drafts
        self.draft, self.acceptance = Mean(), Mean()
        self.spent = self.lost = 0.0
        self.steps = 0

    def observe(self, outcome: Outcome) -> None:
        """One more step."""
        if outcome.first:
            self.acceptance.forget(self.FORGOTTEN)
        tried = min(outcome.accepted + 1, outcome.drafted)
        if tried > 0:
            self.acceptance.add(outcome.accepted / tried, tried)
        if outcome.first:  # its time is the prompt's
            return
        self.steps += 1
        seconds = outcome.step_seconds - outcome.draft_seconds
        if n := round(outcome.drafted):
            self.verify.setdefault(n, Mean()).add(seconds)
        else:
            self.alone.append(seconds)
        if outcome.drafted > 0:
            self.draft.add(outcome.draft_seconds / outcome.drafted, outcome.drafted)
        self.spent += outcome.step_seconds
        if (plain := self.plain) is not None:
            lost = outcome.step_seconds - outcome.emitted * plain if n else outcome.draft_seconds
            self.lost = max(self.lost + lost, -self.GAINS * plain)

    @property
    def plain(self) -> float | None:
        """Seconds of a step without drafts: the mean of the last, but for the slowest, as they may be few."""
        if len(self.alone) < 2:
            return self.alone[0] if self.alone else None
        return (sum(self.alone) - max(self.alone)) / (len(self.alone) - 1)

    @property
    def measures(self) -> bool:
        """Whether the next step should be a plain one, to know what the target takes alone."""
        return not self.alone or self.steps in self.FIRST or self.steps % self.REFRESH == self.REFRESH - 1

    @property
    def begins(self) -> bool:
        """Whether it is not known yet what a draft costs."""
        return self.draft.value is None

    @property
    def reach(self) -> int:
        """The most drafts that may be tried: about twice as many as ever, so that a wrong guess costs little."""
        return min(self.k_max, 2 * max(self.verify, default=0) + 1)

    @property
    def best(self) -> int:
        """The number of drafts with the highest rate, once it can be reckoned."""
        return 1 if self.begins or self.plain is None else max(range(self.reach + 1), key=self.rate)

    def allowed(self, k: int) -> int:
        """`k`, or 0 where speculation has lost, or with k drafts may expect to have lost, CREDIT and WORST of the time.

        Plain steps make the share small again. k = 0 asks for a trial. The very first drafts come one at a time, and 0
        is also what a step that measures the target alone gets.
        """
        if self.measures:
            return 0
        k = 1 if self.begins else k or min(self.TRIAL, self.k_max)
        loss = 0.0 if self.begins else self.seconds(k) - self.tokens(k) * (self.plain or 0.0)
        credit = WORST * self.spent + self.CREDIT * (self.plain or 0.0)
        return 0 if self.lost + max(0.0, loss) > credit else k

    def seconds(self, k: int) -> float:
        """Of drafting k tokens and verifying them; along lines through the measured numbers of drafts."""
        known = sorted((n, mean.value) for n, mean in self.verify.items() if mean.value is not None)
        known = [(0, self.plain), *known] if self.plain is not None else known
        at = next((i for i, (n, _) in enumerate(known) if n >= k), len(known) - 1)
        (n0, t0), (n1, t1) = known[max(0, at - 1)], known[at]
        slope = (t1 - t0) / (n1 - n0) if n0 < n1 else 0.0
        verify = t1 + (k - n1) * (slope if k < n1 else max(0.0, slope))
        return verify + k * (self.draft.value or 0.0)

    def tokens(self, k: int) -> float:
        """Expected of a step with k drafts: (1 - a^(k+1)) / (1 - a)."""
        expected, weight = self.EXPECTED
        a = (self.acceptance.sum + expected * weight) / (self.acceptance.weight + weight)
        return (1 - a ** (k + 1)) / (1 - a)

    def rate(self, k: int) -> float:
        """Expected tokens per second at k drafts."""
        return self.tokens(k) / self.seconds(k)


class Auto:
    """The K from 0 to `k_max` whose expected tokens per second are most, from measured costs and acceptance.

    That is the improvement factor MAL / (v(K) + K·c) with c and v measured, and the break-even formula where it comes
    out at K = 0: then the target decodes alone, but for short trials that cost at most WORST of the time and
    Meter.CREDIT steps, the drafter's reading of the prompt not counted.
    """

    def __init__(self, k_max: int = 8) -> None:
        self.meter = Meter(k_max)

    def wanted(self) -> int:
        return self.meter.allowed(self.meter.best)

    confident = staticmethod(always)

    def observe(self, outcome: Outcome) -> None:
        self.meter.observe(outcome)


class Confidence:
    """Draft on while another token pays: its chance of acceptance × the time a token is worth against its own cost.

    The threshold is rate × (seconds of a draft and of verifying one more), so it adapts to the pair and the machine.
    """

    def __init__(self, k_max: int = 12) -> None:
        self.meter = Meter(k_max)
        self.threshold = 0.3
        self._tokens, self._seconds = Mean(), Mean()

    def wanted(self) -> int:
        return self.meter.allowed(min(self.meter.reach, 2 * self.meter.best))  # a drafter may be too sure of itself

    def confident(self, reach: float) -> bool:
        return reach >= self.threshold

    def observe(self, outcome: Outcome) -> None:
        self.meter.observe(outcome)
        if outcome.first:
            return
        self._tokens.add(outcome.emitted)
        self._seconds.add(outcome.step_seconds)
        n = max(1, round(outcome.drafted))
        seconds = self.meter.seconds(n) - self.meter.seconds(n - 1)
        rate = (self._tokens.value or 0.0) / (self._seconds.value or math.inf)
        self.threshold = min(0.9, max(0.02, rate * seconds))


class Bandit:
    """UCB over policies: the arm with the most tokens per second so far, plus a bonus for the little tried.

    Rates are ratios of running sums, so a long step weighs what it takes; they forget slowly, so that steps' luck does
    not decide between arms. As for the others, an arm that drafts is not pulled while speculation is behind plain
    decoding.
    """

    def __init__(self, arms: Sequence[Policy], bonus: float = 0.7) -> None:
        self.arms, self.bonus = list(arms), bonus
        self.meter = Meter(0)
        self._tokens = [Mean(fade=0.99) for _ in self.arms]
        self._seconds = [Mean(fade=0.99) for _ in self.arms]
        self._pulls = 0
        self._at: int | None = None

    def wanted(self) -> int:
        best = max(self._rate(arm) for arm in range(len(self.arms)))
        arm = max(range(len(self.arms)), key=lambda arm: self._score(arm, best))
        k = self.arms[arm].wanted()
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
        self.meter.observe(outcome)
        for arm in self.arms:
            arm.observe(outcome)
        if self._at is None or outcome.first:
            return
        self._pulls += 1
        self._tokens[self._at].add(outcome.emitted)
        self._seconds[self._at].add(outcome.step_seconds)


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
