"""From what steps cost and bring to how many tokens may be drafted: the estimates and the loss budget together."""

from collections import deque

from sparsedraft.speculate.policy.budget import LossBudget
from sparsedraft.speculate.policy.estimates import Estimates
from sparsedraft.speculate.policy.lengths import Lengths
from sparsedraft.speculate.policy.protocol import Outcome


class Meter:
    """Observes every step; says which number of drafts is best, and whether the loss budget allows it."""

    # A plain step measures the target alone after so many steps: soon and often at first, because a machine that warms
    # up made useless drafts look good (10 to 16 % lost in 800 tokens; docs/log), ...
    FIRST_PLAIN = 1, 5, 10, 20, 40
    # ... of an earlier run's estimates only twice: the machine may have another speed now, ...
    FIRST_PLAIN_AGAIN = 1, 20
    # ... then once in 100 steps, which costs less than 1 % where drafts pay twofold.
    PLAIN_EVERY = 100
    # After a pause, 3 drafts in one step find out whether speculation pays by now: enough to see a run of acceptances,
    # and a small loss where none is accepted.
    TRIAL = 3
    # A trial may find that a drafter is as good as this, and takes half of the time: the machine may have been busy
    # when that was measured. Where even that would not pay for what it must read first, there is none.
    HOPE, HOPE_OF_SECONDS = 0.9, 0.5
    # Where texts join in every step no plain step is measured, and so many first steps wait for one at the most.
    UNBOOKED = 64

    def __init__(self, k_max: int, reads_freely: bool = False) -> None:
        """`reads_freely`: what the drafter reads late is not weighed against what it saves."""
        self.k_max, self.reads_freely = k_max, reads_freely
        self.estimates, self.budget, self.lengths = Estimates(), LossBudget(), Lengths()
        self.steps = 0
        self.first_plain: tuple[int, ...] = self.FIRST_PLAIN
        self.behind = 0  # tokens that the drafter would read late in the next step
        self._prompts = deque[Outcome](maxlen=self.UNBOOKED)  # first steps whose time is not in the budget yet

    def begin(self, prompt: int, room: int) -> None:
        """The next answer begins; see `Policy.begin`."""
        self.behind = prompt
        self.estimates.begin()
        self.lengths.begin(prompt, room)

    def observe(self, outcome: Outcome) -> float | None:
        """Learn from a step. Returns its seconds without what was read late.

        None where they say nothing of the drafter: the time is a prompt's, or look-up drafted in its place.
        """
        self.behind = outcome.behind
        seconds, n = self.estimates.observe(outcome), round(outcome.drafted)
        self.lengths.wrote(outcome.emitted, not outcome.room, outcome.full)
        plain = self.estimates.plain
        if outcome.begins:
            self._prompts.append(outcome)
        self._book_prompts(plain)
        if outcome.looked_up:  # says what verification costs, and nothing of the drafter
            self.steps += seconds.step is not None
            self.budget.save(0.0 if seconds.step is None else outcome.emitted * (plain or 0.0) - seconds.step, plain)
            return None
        if seconds.step is None:  # a prompt's step: its drafts count with the time that drafts are known to take
            loss = expected = 0.0
            if n and self.estimates.knows_drafts and plain is not None:
                expected = self.estimates.seconds(n)
                loss = expected - outcome.emitted * plain
            self.budget.add(expected, loss, seconds.reading, plain)
            return None
        self.steps += 1
        if n:
            loss = seconds.step - outcome.emitted * (plain or 0.0)
        elif outcome.asked:  # and drafted nothing
            loss = min(seconds.step, outcome.draft_seconds - seconds.late)
        else:  # plain steps of uneven length are no loss, and what look-up takes beside the drafter is not its loss
            loss = 0.0
        self.budget.add(seconds.step, loss, seconds.reading, plain)
        return seconds.step

    def _book_prompts(self, plain: float | None) -> None:
        """The target's reading is part of the time. No token of it takes as long as a plain step, but for a stall."""
        if plain is None:
            return
        for outcome in self._prompts:
            seconds = min(outcome.step_seconds - outcome.draft_seconds, outcome.read * plain)
            self.budget.add(seconds, 0.0, 0.0, plain)
        self._prompts.clear()

    @property
    def measures_target(self) -> bool:
        """Whether the next step is a plain one, to measure the target alone."""
        regular = self.steps % self.PLAIN_EVERY == self.PLAIN_EVERY - 1
        return self.estimates.plain is None or self.steps in self.first_plain or regular

    @property
    def reach(self) -> int:
        """The most drafts that may be tried: about twice as many as so far, so that a wrong guess costs little."""
        return min(self.k_max, 2 * self.estimates.most_drafts + 1)

    @property
    def best(self) -> int:
        """The number of drafts with the highest expected rate; 1 while the rate is not known."""
        if not self.estimates.knows_drafts or self.estimates.plain is None:
            return 1
        rates = self.estimates.rates(self.reach)
        return rates.index(max(rates))

    def allowed(self, k: int) -> int:
        """`k`, or 0 where the loss budget does not allow it, or where the answer is not expected to be long enough for
        what the drafter would read first. k = 0 asks for a trial.

        Plain steps make the share that was lost small again. The first drafts come one at a time, to learn their price.
        A step that measures the target alone gets 0 as well.
        """
        if self.measures_target:
            return 0
        if self.estimates.unsure:  # the last step's seconds were of reading, too: one draft more tells its price
            return 1
        trial, known, plain = not k, self.estimates.knows_drafts, self.estimates.plain or 0.0
        k = (k or min(self.TRIAL, self.k_max)) if known else 1
        loss = self.estimates.seconds(k) - self.estimates.tokens(k) * plain if known else 0.0
        reading = 0.0 if self.reads_freely else self.estimates.reading_seconds(self.behind)
        if not self._pays(k, reading, trial) or not self.budget.allows(loss, reading, plain, not known):
            return 0
        return k

    def _pays(self, k: int, reading: float, trial: bool) -> bool:
        """Whether the rest of the answer is expected to pay for `reading` seconds."""
        if not reading:
            return True
        if not self.estimates.knows_drafts:
            gain = (self.estimates.plain or 0.0) * (1 - 1 / (1 + self.HOPE))  # of one draft that costs nothing
        else:
            gain = self.estimates.gain(k, *((self.HOPE, self.HOPE_OF_SECONDS) if trial else ()))
        return self.lengths.pays_now(gain, reading, reading / max(1, self.behind))
