"""What steps of speculative decoding cost, bring and lose: the account from which policies choose K.

Times are measured, so they tell of this pair on this machine, as it is at present.
"""

import math
from collections import deque

from sparsedraft.speculate.policy.protocol import Outcome

WORST = 0.02  # share of the time that speculation may lose before it must pause
FADE = 0.95  # weight of the past in running means


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


class Recent:
    """The mean of the last values, but for the highest, as they may be few and one of them held up."""

    def __init__(self, most: int = 7) -> None:
        self.last: deque[float] = deque(maxlen=most)

    def add(self, value: float) -> None:
        self.last.append(value)

    @property
    def value(self) -> float | None:
        if len(self.last) < 2:
            return self.last[0] if self.last else None
        return (sum(self.last) - max(self.last)) / (len(self.last) - 1)


class Costs:
    """Seconds at about one number of rows: of a plain step, of verifying n drafts, of a draft, of a token read late."""

    def __init__(self) -> None:
        self.plain, self.draft, self.reading = Recent(3), Recent(), Mean()  # plain steps are rare where drafts pay
        self.verify: dict[int, Recent] = {}  # by drafts
        self.unpriced: Outcome | None = None  # of a prompt, when it was not known what a draft takes


class Meter:
    """What steps cost: of a plain one, of verifying n drafts, of a draft; the acceptance; and what speculation lost.

    A drafter that was not asked for a while first reads what was written meanwhile. That is no part of a draft's price.
    It is paid from what speculation has `saved`, and is lost where that is not enough: a drafter that takes more than
    WORST of a plain step to read a token is then not asked again before the next answer.
    """

    FIRST = 1, 5, 10, 20, 40  # steps after which a plain one measures the target alone again: a machine warms up
    REFRESH = 100  # and every how many from there on
    GAINS = 5  # plain steps' time that speculation may lose again of what it has gained
    SAVED = 50  # and that the drafter may take for reading what plain steps wrote
    CREDIT = 2  # plain steps' time that speculation may lose at first, so that short runs learn what it is worth
    EXPECTED = 0.7, 5  # acceptance, as if so many drafts had shown it: three unlucky ones are no verdict
    FORGOTTEN = 0.7  # share of the acceptance so far that does not count in the next answer, whose kind is its own
    TRIAL = 3  # drafts of a step that finds out whether speculation pays by now
    READING = 0.5  # of a draft's price: the most that a token read among others takes, as more was something else
    STALL = 4  # times what was expected of a step: the most it counts, as more is the machine's doing

    def __init__(self, k_max: int) -> None:
        self.k_max = k_max
        self.by_rows: dict[int, Costs] = {}  # by the digits of their number in base 2
        self.costs = Costs()
        self.acceptance = Mean()
        self.spent = self.lost = self.saved = 0.0  # `spent`: since speculation last had GAINS
        self.steps = self.behind = 0

    def observe(self, outcome: Outcome) -> float | None:
        """One more step: the seconds it counts, but for what was read late. None where its time is the prompt's."""
        if outcome.begins:
            self.acceptance.forget(self.FORGOTTEN)
        tried = min(outcome.accepted + 1, outcome.drafted)
        if tried > 0:
            self.acceptance.add(outcome.accepted / tried, tried)
        self.costs = costs = self.by_rows.setdefault(outcome.rows.bit_length(), Costs())
        self.behind = outcome.behind
        late, n = self._late(outcome), round(outcome.drafted)
        if outcome.prompt:
            if n and not self.begins and self.plain is not None:  # of its time, what is not the prompts'
                self.spent += self.seconds(n)
                self._book(self.seconds(n) - outcome.emitted * self.plain, 0.0)
            return None
        self.steps += 1
        seconds = outcome.step_seconds - outcome.draft_seconds
        most = math.inf if self.plain is None else self.STALL * self.seconds(n)  # as known before this step
        took = min(outcome.step_seconds - late, most)
        (costs.verify.setdefault(n, Recent()) if n else costs.plain).add(seconds)
        if n or outcome.asked:  # where something was read late, its price is what it was thought to be
            price = costs.draft.value if late else None
            costs.draft.add(outcome.draft_seconds / max(1, n) if price is None else price)
            if costs.unpriced is not None:
                prompt, costs.unpriced = costs.unpriced, None
                self._late(prompt)
        read = min(late, self.STALL * outcome.late * (costs.reading.value or 0.0))
        self.spent += took + read
        if self.plain is not None:  # plain steps of uneven length are nobody's loss
            self._book(took - outcome.emitted * self.plain if n else min(took, outcome.draft_seconds - late), read)
        return took

    def _late(self, outcome: Outcome) -> float:
        """Seconds in which late tokens were read: what drafting took beyond its drafts.

        One token is read as fast as none, with the first draft. A prompt is reckoned once a draft has a price.
        """
        costs, price = self.costs, self.costs.draft.value
        if outcome.late <= 1:
            return 0.0
        if price is None:
            costs.unpriced = outcome if outcome.prompt else None
            return 0.0
        late = max(0.0, outcome.draft_seconds - max(1, round(outcome.drafted)) * price)
        costs.reading.add(min(late / outcome.late, self.READING * price), outcome.late)
        return late

    def _book(self, own: float, late: float) -> None:
        """Seconds that a step lost, or gained where they are negative, without and with what was read late."""
        plain = self.plain or 0.0
        paid = min(late, self.saved)
        self.lost += own + late - paid
        over = max(0.0, -self.GAINS * plain - self.lost)
        self.lost += over
        self.spent = 0.0 if over else self.spent  # or a long good time would pay for a long bad one
        self.saved = min(self.saved - paid + over, self.SAVED * plain)

    @property
    def plain(self) -> float | None:
        """Seconds of a step without drafts."""
        return self.costs.plain.value

    @property
    def measures(self) -> bool:
        """Whether the next step should be a plain one, to know what the target takes alone."""
        return self.plain is None or self.steps in self.FIRST or self.steps % self.REFRESH == self.REFRESH - 1

    @property
    def begins(self) -> bool:
        """Whether it is not known yet what a draft costs: the one of which it was measured may have been held up."""
        return len(self.costs.draft.last) < 2

    @property
    def reach(self) -> int:
        """The most drafts that may be tried: about twice as many as ever, so that a wrong guess costs little."""
        return min(self.k_max, 2 * max(self.costs.verify, default=0) + 1)

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
        late = max(0.0, self.behind * (self.costs.reading.value or 0.0) - self.saved)
        credit = WORST * self.spent + self.CREDIT * (self.plain or 0.0)
        return 0 if self.lost + max(0.0, loss) + late > credit else k

    def seconds(self, k: int) -> float:
        """Of drafting k tokens and verifying them; along lines through the measured numbers of drafts.

        One that was tried once only counts where it was no slower than the others say: it may have been held up.
        """
        found = {n: (verify.value or 0.0, len(verify.last)) for n, verify in self.costs.verify.items()}
        if self.plain is not None:
            found[0] = self.plain, 2
        sure = {n: seconds for n, (seconds, times) in found.items() if times > 1}
        once = {n: min(seconds, along(sure, n)) if sure else seconds for n, (seconds, _) in found.items()}
        return along(once | sure, k) + k * (self.costs.draft.value or 0.0)

    def tokens(self, k: int) -> float:
        """Expected of a step with k drafts: (1 - a^(k+1)) / (1 - a)."""
        expected, weight = self.EXPECTED
        a = (self.acceptance.sum + expected * weight) / (self.acceptance.weight + weight)
        return (1 - a ** (k + 1)) / (1 - a)

    def rate(self, k: int) -> float:
        """Expected tokens per second at k drafts."""
        return self.tokens(k) / self.seconds(k)


def along(measured: dict[int, float], k: int) -> float:
    """The value at k on the lines through what was measured at other numbers; beyond the last it never falls."""
    known = sorted(measured.items())
    at = next((i for i, (n, _) in enumerate(known) if n >= k), len(known) - 1)
    (n0, t0), (n1, t1) = known[max(0, at - 1)], known[at]
    slope = (t1 - t0) / (n1 - n0) if n0 < n1 else 0.0
    return t1 + (k - n1) * (slope if k < n1 else max(0.0, slope))
