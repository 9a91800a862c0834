"""How much time speculation may lose against plain decoding."""


class LossBudget:
    """Two accounts in seconds against plain decoding: what drafts lost or gained, and what late reading may take.

    The first pays for trials of a drafter that may not pay. The second, `saved`, pays what a drafter reads late: its
    prompt, or what was written while it was not asked. Gains fill it, beyond those that the first account keeps. In
    all, speculation loses at most SHARE + READING_SHARE of the time and the time of CREDIT + READING_CREDIT plain
    steps, and what a last step takes beyond what was expected.
    """

    # 0.75 % of the time may be lost by drafts for good, and as much by reading. The goal that `auto` has to meet with a
    # useless drafter is 2 % of the time of whole answers; what is left is for the noise of the estimates.
    SHARE = READING_SHARE = 0.0075
    # And the time of 2 plain steps, so that a short answer can find out whether drafts pay. One step is used up by one
    # slow first step; four lose 4 to 7 % of the shortest runs where no draft is worth anything (simulated; docs/log).
    CREDIT = 2
    # And of 4 more for reading: a prompt of a hundred tokens. It is given once, as what is learned is kept.
    READING_CREDIT = 4
    # Of a drafter that never read, more can be learned: its first reading may take a tenth of the time so far, in
    # advance. Else behind long prompts alone none would ever be tried.
    FIRST_READING = 0.1
    # Of its gains, speculation may lose the time of 5 plain steps again: without a limit, a long good time would pay
    # for a bad answer of any length.
    GAINS = 5
    # Gains beyond that are saved for late reading: up to the time of 50 plain steps, or what the longest reading so far
    # took, twice.
    SAVED, READINGS = 50, 2

    def __init__(self) -> None:
        self.spent = 0.0  # seconds of all steps since the account last stood at GAINS
        self.lost = 0.0  # seconds that drafts lost; negative where they gained
        self.saved = 0.0  # seconds that late reading may take, beside its credit; negative where it took more
        self.longest = 0.0  # seconds of the longest late reading, done or wanted
        self.elapsed = 0.0  # seconds of all steps

    def add(self, seconds: float, loss: float, reading: float, plain: float | None) -> None:
        """A step of `seconds`, in which drafts lost `loss` (negative: gained), and late reading of `reading`.

        `plain`: seconds of a plain step. None: it is not known, so nothing can be called a loss.
        """
        self.spent += seconds
        self.elapsed += seconds + reading
        self.longest = max(self.longest, reading)
        self.saved += self.READING_SHARE * (seconds + reading) - reading
        if plain is None:
            return
        self.lost += loss
        surplus = max(0.0, -self.GAINS * plain - self.lost)
        self.lost += surplus
        self.spent = 0.0 if surplus else self.spent
        self.saved = min(self.saved + surplus, max(self.SAVED * plain, self.READINGS * self.longest))

    def save(self, seconds: float, plain: float | None) -> None:
        """Keep what look-up beside the drafter gained for late reading, which it caused; it pays for no trials."""
        if plain is not None:
            self.saved = min(self.saved + max(0.0, seconds), max(self.SAVED * plain, self.READINGS * self.longest))

    def allows(self, loss: float, reading: float, plain: float, first: bool = False) -> bool:
        """Whether a step may be tried that is expected to lose `loss`, and to read late for `reading` seconds. `first`:
        the drafter has read nothing so far."""
        self.longest = max(self.longest, reading)
        advance = self.FIRST_READING * self.elapsed if first else 0.0
        affordable = not reading or reading <= max(advance, self.saved + self.READING_CREDIT * plain)
        return affordable and self.lost + max(0.0, loss) <= self.SHARE * self.spent + self.CREDIT * plain
