"""Which text is which: vLLM hands over rows of tokens, and says neither what they are called nor that they moved."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sparsedraft.maths.sampling import Dice
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence


@dataclass(eq=False)
class Text:
    """A text under way: its tokens, also as the bytes that vLLM holds; by how many it grew in the last step; the
    draft that follows."""

    sequence: TokenSequence
    held: bytes
    grown: int = 0
    draft: Draft = field(default_factory=Draft)

    def goes_on(self, ids: np.ndarray, held: bytes) -> bool:
        """Whether a step that verified the draft can have made these tokens of it."""
        grown = len(ids) - len(self.sequence.tokens)
        return 0 < grown <= len(self.draft.tokens) + 1 and held.startswith(self.held)

    def go_on(self, ids: np.ndarray, held: bytes) -> None:
        """It has these tokens now."""
        new = ids[len(self.sequence.tokens) :].tolist()
        self.sequence.tokens += new
        self.held, self.grown = held, len(new)


class Requests:
    """The texts of vLLM's rows. `longest`: tokens that one may have."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self._rows: dict[int, Text] = {}  # by the row of the last step
        self._begun = 0

    def follow(self, rows: Mapping[int, np.ndarray]) -> dict[int, Text]:
        """The texts that go on, by the row that they have now, each with the tokens that a step has added.

        A row mostly holds what it held before; other texts are looked for among those that are left over.
        """
        held = {row: ids.tobytes() for row, ids in rows.items()}
        left, found = self._rows, {}
        for row, ids in rows.items():
            if row in left and left[row].goes_on(ids, held[row]):
                found[row] = left.pop(row)
        for row in sorted(rows.keys() - found.keys()):
            moved = [old for old, text in left.items() if text.goes_on(rows[row], held[row])]
            if moved:
                found[row] = left.pop(max(moved, key=lambda old: len(left[old].held)))
        for row, text in found.items():
            text.go_on(rows[row], held[row])
        self._rows = dict(found)
        return found

    def begin(self, row: int, ids: np.ndarray, drafter: str) -> Text:
        """A text that nobody knew, of tokens [n]."""
        prompt, self._begun = ids.tolist(), self._begun + 1
        end = max(self.longest, len(prompt))
        sequence = TokenSequence(self._begun, prompt, len(prompt), end, Dice(0), drafter=drafter)
        self._rows[row] = Text(sequence, ids.tobytes())
        return self._rows[row]

    def forget(self) -> None:
        """Know no text any more."""
        self._rows = {}
