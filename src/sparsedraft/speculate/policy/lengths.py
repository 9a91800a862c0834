"""How long answers are, and whether what is left of one can pay for the drafter's reading of its prompt."""

import math
from collections import deque
from typing import NamedTuple


class Ended(NamedTuple):
    """An answer of the past: tokens of its prompt, and of itself."""

    prompt: int
    tokens: int


class Lengths:
    """Lengths of past answers, and the best moment to begin with a drafter that must read first.

    How long this answer becomes is not known, so it is a ski rental: each plain token costs what speculation would have
    saved, and to begin costs the reading once. With the lengths of past answers the best rule is known: begin at the
    length t at which the expected saving after t less the reading is greatest. Answers of a few tokens are thus waited
    for where there are many of them, and where the usual answer pays for the reading it is read at once.
    """

    MOST = 32  # answers that are remembered
    # With no past, an answer is as likely to have each of these lengths: all of them count as one answer.
    PRIOR = 16, 64, 256, 1024

    def __init__(self) -> None:
        self.past: deque[Ended] = deque(maxlen=self.MOST)
        self.begin(0, 0)

    def begin(self, prompt: int, room: int) -> None:
        """An answer begins, of at most `room` tokens. One that was left before its end says nothing."""
        self.prompt, self.room, self.written = prompt, room, 0.0
        self.open = True

    def wrote(self, tokens: float, ended: bool, full: bool) -> None:
        """`tokens` more are written. An answer that was cut, as `full` says, counts as one of twice its length."""
        self.written += tokens
        if ended and self.open:
            self.open = False
            self.past.append(Ended(self.prompt, max(1, round(self.written * (2 if full else 1)))))

    def pays_now(self, gain: float, reading: float, per_token: float) -> bool:
        """Whether to begin now: each later token gains `gain` seconds, `reading` seconds come first, and `per_token`
        more for each token that is written before."""
        if gain <= 0:
            return False
        left = self._left()
        if not left:  # longer than any: about as much again
            return gain * min(self.written, self.room - self.written) > reading
        now, later = -math.inf, -math.inf
        weight = sum_left = 0.0  # of the answers that are longer than t, and their tokens after now
        for at, of in (*left, (0.0, 0.0)):  # from the longest on; `at`: tokens from now on
            worth = gain * (sum_left - weight * at) - weight * (reading + per_token * at)
            now, later = worth, max(later, now)
            weight, sum_left = weight + of, sum_left + of * at
        return now > 0 and now >= later

    def _left(self) -> list[tuple[float, float]]:
        """(tokens from now on, weight) of each past answer that is longer than this one so far, from the longest on.

        Answers to prompts of about this length count more.
        """
        known = [(float(n), 1 / len(self.PRIOR)) for n in self.PRIOR]
        known += [(float(past.tokens), self._likeness(past.prompt)) for past in self.past]
        cut = ((min(tokens, self.room) - self.written, weight) for tokens, weight in known)
        return sorted(((tokens, weight) for tokens, weight in cut if tokens > 0), reverse=True)

    def _likeness(self, prompt: int) -> float:
        """How much an answer to a prompt of this length says of this one: 1 for the same length, 1/2 for twice it."""
        return 1 / (1 + math.log2((prompt + 16) / (self.prompt + 16)) ** 2)
