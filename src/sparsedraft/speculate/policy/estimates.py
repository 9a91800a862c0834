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
        self.draft = Recent()  # of drafting one token; of a pass that drafts several
        self.passes: dict[int, Recent] = {}  # of drafting n tokens in one pass, by n; empty where each takes its own
        self.drafts = 0  # how often that was measured, up to 2
        self.reading = Mean()  # of reading one token late, of many: of a prompt, or after a long pause
        self.catching_up = Mean()  # of reading one token late, of few
        self.target_reading = Mean()  # of reading one token of a prompt, the target
        self.prompt: Outcome | None = None  # a prompt that was read before the price of a draft was known


class Seconds(NamedTuple):
    """The time of a step, for the loss budget."""

    step: float | None  # without what was read late; at most STALL times what was expected; None: a prompt's
    late: float  # of what was read late, as measured
    reading: float  # the same, at most STALL times what was expected
    expected: float | None = None  # of a step of one text, where as many drafts were verified before, more than once


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
    # What all answers so far have shown fades ten times as slowly, and is what an answer starts from.
    FADE_OF_USUAL = 0.995
    # A place's own rate counts in full only after many more than 20 drafts.
    PRIOR_OF_PLACE = 20
    # A token that is read together with others takes less than a whole draft. A higher figure than half of a draft's
    # price is a stall of the machine, not the drafter's speed.
    READING_LIMIT = 0.5
    # From so many tokens on, reading is that of a prompt: the time of a pass is shared by many.
    MANY = 32
    # Before a drafter has read anything, it is taken to read a token in half of the target's time.
    ASSUMED_READING = 0.5
    # A step that takes more than 4 times the expected time was stalled by the machine. It counts as 4 times: without a
    # limit, one stall stopped drafting for thousands of tokens.
    STALL = 4
    # A step of less than 0.7 of the usual time says that the machine has become so fast: no stall does that. Of what
    # was measured before only the lowest counts on: steps that are rare would be taken for slow ones, plain ones where
    # drafts pay, and those with more drafts than are tried now.
    FASTER = 0.7
    # After 20 plain steps what drafts cost is taken for as little as it ever was lately. The machine may have been busy
    # then, and is not any more: else a good drafter is not asked again for hundreds of tokens (measured; docs/log).
    PAUSE = 20

    def __init__(self) -> None:
        self.by_rows: dict[int, Costs] = {}  # by the bit length of the number of rows: 1, 2-3, 4-7, ...
        self.costs = Costs()
        self.acceptance, self.usual = Mean(), Mean(self.FADE_OF_USUAL)
        self.places: list[
            Mean
        ] = []  # how much oftener than that a draft is accepted, by its place, if those before are
        self._pause = 0  # plain steps since the drafter was asked
        self.unsure = False  # whether the price of a draft is of before a pause, and the drafter has just read

    def begin(self) -> None:
        """The next answer begins."""
        self.acceptance.forget(self.FORGET_BETWEEN_ANSWERS)

    def observe(self, outcome: Outcome) -> Seconds:
        """Learn from a step."""
        drafted, accepted = outcome.own
        tried = min(accepted + 1, drafted)  # those behind the first rejection were not tried
        if tried > 0:
            if outcome.rows == 1:
                self._note_places(round(accepted), round(drafted))
            for mean in (self.acceptance, self.usual):
                mean.add(accepted / tried, tried)
        self.costs = self.by_rows.setdefault(outcome.rows.bit_length(), Costs())
        if not outcome.looked_up:  # a drafter that look-up stands in for is not paused
            self._note_pause(outcome.asked or drafted > 0, outcome.late > 1)
        if outcome.read:
            self.costs.target_reading.add((outcome.step_seconds - outcome.draft_seconds) / outcome.read, outcome.read)
        expected = self.reading_seconds(outcome.late)
        late, n, own = self._late_seconds(outcome), round(outcome.drafted), round(drafted)
        reading = min(late, self.STALL * (expected or self.reading_seconds(outcome.late) or math.inf))
        if outcome.begins:
            return Seconds(None, late, reading)
        # as expected before this step
        looked_up = self.drafting(n) - self.drafting(own)
        before = math.inf if self.plain is None else self.seconds(n) - looked_up
        verify = self.costs.verify.setdefault(n, Recent()) if n else self.costs.plain
        # of several texts a step also differs by how many of them draft
        sure = outcome.rows == 1 and self.knows_drafts and self.plain is not None and len(verify.last) > 1
        if (n == 0 or sure) and outcome.step_seconds - outcome.draft_seconds < self.FASTER * (verify.value or 0.0):
            self._renew(verify)
        verify.add(outcome.step_seconds - outcome.draft_seconds)
        if (own or outcome.asked) and not (late and self.costs.draft.value is None):
            self._add_draft(outcome, own, bool(late))
        step = min(outcome.step_seconds - late, self.STALL * before)
        return Seconds(step, late, reading, before if sure else None)

    def _note_places(self, accepted: int, drafted: int) -> None:
        """What each draft that was tried shows of its place."""
        rate, tried = self.accepted, min(accepted + 1, drafted)
        self.places += [Mean(self.FADE_OF_USUAL) for _ in range(tried - len(self.places))]
        for place, mean in enumerate(self.places[:tried]):
            mean.add((place < accepted) - rate)

    def _note_pause(self, asked: bool, late: bool) -> None:
        self.unsure = asked and late and self._pause >= self.PAUSE
        self._pause = 0 if asked else self._pause + 1
        if self._pause == self.PAUSE and self.knows_drafts:
            for recent in (self.costs.draft, *self.costs.passes.values(), *self.costs.verify.values()):
                recent.renew()

    def _renew(self, kind: Recent) -> None:
        """The machine has become faster, as a step of this kind shows."""
        kind.last.clear()
        for recent in (self.costs.plain, self.costs.draft, *self.costs.passes.values(), *self.costs.verify.values()):
            recent.renew()

    def _add_draft(self, outcome: Outcome, n: int, late: bool) -> None:
        """Learn the price of a draft. A step that also read tokens late cannot tell it, and repeats the known price."""
        price = self.costs.draft.value if late else None
        passes = 1 if outcome.at_once else max(1, n)
        self.costs.draft.add(outcome.draft_seconds / passes if price is None else price)
        if outcome.at_once and price is None:
            self.costs.passes.setdefault(max(1, n), Recent()).add(outcome.draft_seconds)
        self.costs.drafts = min(2, self.costs.drafts + 1)
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
            return outcome.draft_seconds if outcome.prompt else 0.0
        late = max(0.0, outcome.draft_seconds - self.drafting(max(1, round(outcome.own[0]))))
        read = costs.reading if outcome.late >= self.MANY else costs.catching_up
        read.add(min(late / outcome.late, self.READING_LIMIT * price), outcome.late)
        return late

    @property
    def plain(self) -> float | None:
        """Seconds of a step without drafts; None while none was measured."""
        return self.costs.plain.value

    @property
    def price(self) -> float:
        """Seconds of drafting one token, or of a pass that drafts several; 0 while none was drafted."""
        return self.costs.draft.value or 0.0

    def drafting(self, n: int) -> float:
        """Seconds of drafting n tokens: in one pass each; or all in one, as far as is known of such passes."""
        if not self.costs.passes or not n:
            return n * self.price
        return interpolate({k: recent.value or 0.0 for k, recent in self.costs.passes.items()}, n)

    @property
    def knows_drafts(self) -> bool:
        """Whether the price of a draft is known. One measurement is not enough: it may have been a stall."""
        return self.costs.drafts >= 2

    @property
    def knows_verification(self) -> bool:
        """Whether any step was measured that read no prompt."""
        return bool(self.costs.verify) or self.plain is not None

    @property
    def most_drafts(self) -> int:
        """The largest number of drafts that was verified so far."""
        return max(self.costs.verify, default=0)

    def reading_seconds(self, tokens: int) -> float:
        """Of reading this many tokens late; before any was read, by what the target takes for its prompt."""
        many, few = self.costs.reading.value, self.costs.catching_up.value
        known = (many, few) if tokens >= self.MANY else (few, many)
        each = next((value for value in known if value is not None), None)
        if each is None:
            target, draft, plain = self.costs.target_reading.value or 0.0, self.costs.draft.value, self.plain
            each = target * (self.ASSUMED_READING if draft is None or not plain else min(1.0, draft / plain))
        return tokens * each if tokens > 1 else 0.0

    def seconds(self, k: int) -> float:
        """Of drafting k tokens and verifying them."""
        return self.verifying([k])[0] + self.drafting(k)

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

    @property
    def accepted(self) -> float:
        """The acceptance rate: of this answer, from what is usual on."""
        evidence, usual, prior = self.acceptance, self.usual, self.PRIOR_DRAFTS
        start = (usual.sum + self.PRIOR_ACCEPTANCE * prior) / (usual.weight + prior)
        return (evidence.sum + start * prior) / (evidence.weight + prior)

    def tokens(self, k: int, a: float | None = None) -> float:
        """Expected tokens of a step with k drafts: 1 + a_1 + a_1 a_2 + ... + a_1 ... a_k.

        a_i, the rate at place i, is `a` (default: the acceptance rate), and as much more as that place has shown. In a
        block, and in a text of easy and hard parts, later drafts are accepted oftener if those before them are: with
        one rate for all, too few were drafted (4 % of the time, simulated; docs/log).
        """
        a = self.accepted if a is None else a
        reach, tokens, more = 1.0, 1.0, 0.0
        weight = sum(mean.weight for mean in self.places)
        level = sum(mean.sum for mean in self.places) / weight if weight else 0.0  # of a text that turned good or bad
        for place in range(k):
            if place < len(self.places):
                mean = self.places[place]
                more = (mean.sum - level * mean.weight) / (mean.weight + self.PRIOR_OF_PLACE)
            reach *= min(0.999, max(0.0, a + more))
            tokens += reach
        return tokens

    def gain(self, k: int, a: float | None = None, share: float = 1.0) -> float:
        """Seconds that each token is expected to save against a plain step; where a step takes `share` of what it is
        expected to, and no less than a plain one."""
        plain = self.plain or 0.0
        return plain - max(min(plain, self.seconds(k)), share * self.seconds(k)) / self.tokens(k, a)

    def rates(self, most: int) -> list[float]:
        """Expected tokens per second with 0, 1, ..., `most` drafts."""
        verifying = self.verifying(range(most + 1))
        return [self.tokens(k) / (seconds + self.drafting(k)) for k, seconds in enumerate(verifying)]
