"""Whether a model should read a prompt at all, where look-up can draft without it."""

from collections import deque
from collections.abc import Collection

from sparsedraft.speculate.policy.estimates import Estimates
from sparsedraft.speculate.policy.means import Mean
from sparsedraft.speculate.policy.protocol import Place


class Remaining:
    """How much an answer usually goes on with, by the last 20 of all rows (lengths.Lengths knows one at a time)."""

    # Beside these, 3 answers of 128 tokens: after two short ones, a model that was not asked lost more in a long one
    # than all that its reading would have taken (docs/LOG.md).
    PRIOR = (128,) * 3

    def __init__(self) -> None:
        self._ended: deque[int] = deque(maxlen=20)
        self._rows: dict[int, int] = {}  # tokens written so far, by the sequence's index

    def begin(self, going: Collection[int] = ()) -> None:
        """The next answers begin, while those of these indices go on."""
        self._ended.extend(tokens for row, tokens in self._rows.items() if row not in going)
        self._rows = {row: tokens for row, tokens in self._rows.items() if row in going}

    def add(self, row: int, tokens: int) -> None:
        """The sequence has grown by so many tokens."""
        self._rows[row] = self._rows.get(row, 0) + tokens

    def left(self, written: int, room: int) -> float:
        """Tokens that an answer of `written` tokens is expected to go on with, `room` at the most.

        One that is longer than all before is expected to be half done.
        """
        longer = [length - written for length in (*self._ended, *self.PRIOR) if length > written]
        return min(room, sum(longer) / len(longer) if longer else written)


class Reading:
    """Weighs what a model saves in the rest of an answer against the time in which it reads the prompt."""

    # What a model saves in an answer is judged by the answer itself, beside which the usual counts as 20 tokens. It has
    # to be twice what reading the prompt takes: of two sources the one that is taken looks better than it is, and with
    # once the model was asked where look-up alone was faster (docs/LOG.md).
    USUAL, MARGIN = 20, 2.0

    def __init__(self) -> None:
        self.remaining = Remaining()
        self._read: set[int] = set()  # the sequences whose prompt the model has read
        self._usual = Mean(fade=0.99)  # seconds a token that the model saves, or would have saved
        self._saved: dict[int, Mean] = {}  # the same of each sequence alone

    def begin(self, going: Collection[int] = ()) -> None:
        """The next answers begin, while those of these indices go on."""
        self.remaining.begin(going)
        self._read &= {*going}
        self._saved = {row: mean for row, mean in self._saved.items() if row in going}

    def note(self, row: int, saved: float, tokens: float) -> None:
        """In a step of so many tokens the model is expected to save so many seconds a token."""
        for mean in (self._usual, self._saved.setdefault(row, Mean(fade=1.0))):
            mean.add(saved, tokens)

    def add(self, row: int, tokens: int, by_model: bool) -> None:
        """A step wrote so many tokens; `by_model`: the model was asked."""
        self.remaining.add(row, tokens)
        if by_model:
            self._read.add(row)

    def pays(self, place: Place, estimates: Estimates) -> bool:
        """Whether the model has read the prompt of the sequence, or should."""
        if place.row in self._read:
            return True
        own, usual = self._saved.get(place.row, Mean()), self._usual.value or 0.0
        saved = (own.sum + usual * self.USUAL) / (own.weight + self.USUAL)
        left = self.remaining.left(place.written, place.room)
        return saved * left >= self.MARGIN * estimates.reading_seconds(place.prompt + place.written)
