"""From what steps cost and bring to how many tokens may be drafted: the estimates and the loss budget together."""

from sparsedraft.speculate.policy.budget import LossBudget
from sparsedraft.speculate.policy.estimates import Estimates
from sparsedraft.speculate.policy.protocol import Outcome


class Meter:
    """Observes every step; says which number of drafts is best, and whether the loss budget allows it."""

    # A plain step measures the target alone after so many steps: soon and often at first, because a machine that warms
    # up made useless drafts look good (10 to 16 % lost in 800 tokens; docs/log), ...
    FIRST_PLAIN = 1, 5, 10, 20, 40
    # ... then once in 100 steps, which costs less than 1 % where drafts pay twofold.
    PLAIN_EVERY = 100
    # After a pause, 3 drafts in one step find out whether speculation pays by now: enough to see a run of acceptances,
    # and a small loss where none is accepted.
    TRIAL = 3

    def __init__(self, k_max: int) -> None:
        self.k_max = k_max
        self.estimates, self.budget = Estimates(), LossBudget()
        self.steps = 0
        self.behind = 0  # tokens that the drafter would read late in the next step

    def observe(self, outcome: Outcome) -> float | None:
        """Learn from a step. Returns its seconds without what was read late.

        None where they say nothing of the drafter: the time is a prompt's, or look-up drafted in its place.
        """
        self.behind = outcome.behind
        seconds, n = self.estimates.observe(outcome), round(outcome.drafted)
        plain = self.estimates.plain
        if outcome.looked_up:  # says what verification costs, and nothing of the drafter
            self.steps += seconds is not None
            self.budget.save(outcome.emitted * (plain or 0.0) - seconds.step if seconds else 0.0, plain)
            return None
        if seconds is None:  # a prompt's step: its drafts count with the time that drafts are known to take
            if n and self.estimates.knows_drafts and plain is not None:
                expected = self.estimates.seconds(n)
                self.budget.add(expected, expected - outcome.emitted * plain, 0.0, plain)
            return None
        self.steps += 1
        if n:
            loss = seconds.step - outcome.emitted * (plain or 0.0)
        else:  # plain steps of uneven length are no loss; a drafter that was asked and drafted nothing is
            loss = min(seconds.step, outcome.draft_seconds - seconds.late)
        self.budget.add(seconds.step, loss, seconds.reading, plain)
        return seconds.step

    @property
    def measures_target(self) -> bool:
        """Whether the next step is a plain one, to measure the target alone."""
        regular = self.steps % self.PLAIN_EVERY == self.PLAIN_EVERY - 1
        return self.estimates.plain is None or self.steps in self.FIRST_PLAIN or regular

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
        """`k`, or 0 where the loss budget does not allow it. k = 0 asks for a trial.

        Plain steps make the share that was lost small again. The first drafts come one at a time, to learn their price.
        A step that measures the target alone gets 0 as well.
        """
        if self.measures_target:
            return 0
        known, plain = self.estimates.knows_drafts, self.estimates.plain or 0.0
        k = (k or min(self.TRIAL, self.k_max)) if known else 1
        loss = self.estimates.seconds(k) - self.estimates.tokens(k) * plain if known else 0.0
        return k if self.budget.allows(loss, self.estimates.reading_seconds(self.behind), plain) else 0
