"""What a step costs in seconds, and how many tokens it is expected to write: estimates from measured steps.

Times are measured, so the estimates are those of this pair on this machine, as it is now.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sparsedraft.speculate.policy.means import Mean, Recent, interpolate
from sparsedraft.speculate.policy.protocol import Outcome


class Costs:
    """Seconds at about one number of rows."""

    def __init__(self) -> None:
        # Of a plain step, which has no drafts. Plain steps are rare where drafts pay, so the last three are enough.
        self.plain = Recent(3)
        self.verify: dict[int, Recent] = {}  # of verifying n drafts, by n
        self.draft = Recent()  # of drafting one token
        self.reading = Mean()  # of reading one token late: one that was written while the drafter was not asked
        self.prompt: Outcome | None = None  # a prompt that was read before the price of a draft was known


class Seconds(NamedTuple):
    """The time of a step, for the loss budget."""

    step: float  # without what was read late; at most STALL times what was expected
    late: float  # of what was read late, as measured
    reading: float  # the same, at most STALL times what was expected


class Estimates:
    """Running estimates: what plain steps, drafts, verification and late reading cost, and the acceptance rate.

    A drafter that was not asked for a while first reads what was written meanwhile. That time is no part of a draft's
    price.
    """

    # The acceptance starts at 0.7, as if 5 drafts had shown it. With no prior, three unlucky drafts at the start of an
    # answer stopped drafting for the next five answers (1.06x where K = 3 gave 1.32x; docs/log).
    PRIOR_ACCEPTANCE, PRIOR_DRAFTS = 0.7, 5
    # The next answer may be of another kind (code after prose): 70 % of the evidence is dropped when it begins.
    FORGET_BETWEEN_ANSWERS = 0.7
    # A token that is read together with others takes less than a whole draft. A higher figure than half of a draft's
    # price is a stall of the machine, not the drafter's speed.
    READING_LIMIT = 0.5
    # A step that takes more than 4 times the expected time was stalled by the machine. It counts as 4 times: without a
    # limit, one stall stopped drafting for thousands of tokens.
    STALL = 4

    def __init__(self) -> None:
        self.by_rows: dict[int, Costs] = {}  # by the bit length of the number of rows: 1, 2-3, 4-7, ...
        self.costs = Costs()
        self.acceptance = Mean()

    def observe(self, outcome: Outcome) -> Seconds | None:
        """Learn from a step. None where its time is a prompt's, so that it says nothing of a step's cost."""
        if outcome.begins:
            self.acceptance.forget(self.FORGET_BETWEEN_ANSWERS)
        drafted, accepted = outcome.own
        tried = min(accepted + 1, drafted)  # those behind the first rejection were not tried
        if tried > 0:
            self.acceptance.add(accepted / tried, tried)
        self.costs = self.by_rows.setdefault(outcome.rows.bit_length(), Costs())
        late, n, own = self._late_seconds(outcome), round(outcome.drafted), round(drafted)
        if outcome.prompt:
            return None
        # as expected before this step
        limit = math.inf if self.plain is None else self.STALL * (self.seconds(n) - (n - own) * self.price)
        verify = self.costs.verify.setdefault(n, Recent()) if n else self.costs.plain
        verify.add(outcome.step_seconds - outcome.draft_seconds)
        if own or outcome.asked:
            self._add_draft(outcome, own, bool(late))
        reading = min(late, self.STALL * outcome.late * (self.costs.reading.value or 0.0))
        return Seconds(min(outcome.step_seconds - late, limit), late, reading)

    def _add_draft(self, outcome: Outcome, n: int, late: bool) -> None:
        """Learn the price of a draft. A step that also read tokens late cannot tell it, and repeats the known price."""
        price = self.costs.draft.value if late else None
        self.costs.draft.add(outcome.draft_seconds / max(1, n) if price is None else price)
        if self.costs.prompt is not None:
            prompt, self.costs.prompt = self.costs.prompt, None
            self._late_seconds(prompt)

    def _late_seconds(self, outcome: Outcome) -> float:
        """Seconds in which tokens were read late: what drafting took beyond the price of its drafts.

        One token costs nothing extra, because the first draft reads it. A prompt waits until a draft has a price.
        """
        costs, price = self.costs, self.costs.draft.value
        if outcome.late <= 1:
            return 0.0
        if price is None:
            costs.prompt = outcome if outcome.prompt else None
            return 0.0
        late = max(0.0, outcome.draft_seconds - max(1, round(outcome.own[0])) * price)
        costs.reading.add(min(late / outcome.late, self.READING_LIMIT * price), outcome.late)
        return late

    @property
    def plain(self) -> float | None:
        """Seconds of a step without drafts; None while none was measured."""
        return self.costs.plain.value

    @property
    def price(self) -> float:
        """Seconds of drafting one token; 0 while none was drafted."""
        return self.costs.draft.value or 0.0

    @property
    def knows_drafts(self) -> bool:
        """Whether the price of a draft is known. One measurement is not enough: it may have been a stall."""
        return len(self.costs.draft.last) >= 2

    @property
    def knows_verification(self) -> bool:
        """Whether any step was measured that read no prompt."""
        return bool(self.costs.verify) or self.plain is not None

    @property
    def most_drafts(self) -> int:
        """The largest number of drafts that was verified so far."""
        return max(self.costs.verify, default=0)

    def reading_seconds(self, tokens: int) -> float:
        """Of reading this many tokens late."""
        return tokens * (self.costs.reading.value or 0.0)

    def seconds(self, k: int) -> float:
        """Of drafting k tokens and verifying them."""
        return self.verifying([k])[0] + k * self.price

    def verifying(self, counts: Sequence[int]) -> list[float]:
        """Of verifying each of these numbers of drafts, interpolated between those that were measured.

        At least one was measured (`knows_verification`). A number that was measured once counts only where it was no
        slower than the others say: it may have been a stall.
        """
        measured = {n: (verify.value or 0.0, len(verify.last)) for n, verify in self.costs.verify.items()}
        if self.plain is not None:
            measured[0] = self.plain, 2
        sure = {n: seconds for n, (seconds, times) in measured.items() if times > 1}
        once = {n: min(seconds, interpolate(sure, n)) if sure else seconds for n, (seconds, _) in measured.items()}
        points = once | sure
        return [interpolate(points, n) for n in counts]

    def tokens(self, k: int) -> float:
        """Expected tokens of a step with k drafts: (1 - a^(k+1)) / (1 - a), a the acceptance rate."""
        evidence, prior = self.acceptance, self.PRIOR_DRAFTS
        a = (evidence.sum + self.PRIOR_ACCEPTANCE * prior) / (evidence.weight + prior)
        return (1 - a ** (k + 1)) / (1 - a)

    def rates(self, most: int) -> list[float]:
        """Expected tokens per second with 0, 1, ..., `most` drafts."""
        verifying, price = self.verifying(range(most + 1)), self.price
        return [self.tokens(k) / (seconds + k * price) for k, seconds in enumerate(verifying)]
