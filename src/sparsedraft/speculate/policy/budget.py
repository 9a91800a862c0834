"""How much time speculation may lose against plain decoding."""


class LossBudget:
    """The account of what speculation lost or gained, in seconds against plain decoding.

    It pays for trials of a drafter that may not pay. What a drafter reads late is paid from what speculation saved,
    and is a loss only where that is not enough: a drafter that takes more than SHARE of a plain step to read a token is
    then not asked again before the next answer.
    """

    # 2 % of the time may be lost for good. It is the goal that `auto` has to meet with a useless drafter.
    SHARE = 0.02
    # And the time of 2 plain steps, so that a short answer can find out whether drafts pay. One step is used up by one
    # slow first step; four lose 4 to 7 % of the shortest runs where no draft is worth anything (simulated; docs/log).
    CREDIT = 2
    # Of its gains, speculation may lose the time of 5 plain steps again: without a limit, a long good time would pay
    # for a bad answer of any length.
    GAINS = 5
    # Gains beyond that are saved for late reading, up to the time of 50 plain steps: the reading of one long answer.
    SAVED = 50

    def __init__(self) -> None:
        self.spent = 0.0  # seconds of all steps since the account last stood at GAINS
        self.lost = 0.0  # seconds that speculation lost; negative where it gained
        self.saved = 0.0  # seconds of gains that are kept for late reading

    def add(self, seconds: float, loss: float, reading: float, plain: float | None) -> None:
        """A step of `seconds`, in which speculation lost `loss` (negative: gained), and late reading of `reading`.

        `plain`: seconds of a plain step. None: it is not known, so nothing can be called a loss.
        """
        self.spent += seconds + reading
        if plain is None:
            return
        paid = min(reading, self.saved)
        self.lost += loss + reading - paid
        surplus = max(0.0, -self.GAINS * plain - self.lost)
        self.lost += surplus
        self.spent = 0.0 if surplus else self.spent
        self.saved = min(self.saved - paid + surplus, self.SAVED * plain)

    def save(self, seconds: float, plain: float | None) -> None:
        """Keep what look-up beside the drafter gained for late reading, which it caused; it pays for no trials."""
        if plain is not None:
            self.saved = min(self.saved + max(0.0, seconds), self.SAVED * plain)

    def allows(self, loss: float, reading: float, plain: float) -> bool:
        """Whether a step may be tried that is expected to lose `loss`, and to read late for `reading` seconds."""
        unpaid = max(0.0, reading - self.saved)
        return self.lost + max(0.0, loss) + unpaid <= self.SHARE * self.spent + self.CREDIT * plain
