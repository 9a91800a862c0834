"""What proposes tokens."""

from collections.abc import Sequence
from typing import Protocol

from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.speculate.loop.verify import Verifier


class Drafter(Protocol):
    """Proposes tokens for sequences. It may hold a state for each, in the order in which they are given.

    `verifier` verifies drafts of the shape that this drafter makes.
    """

    verifier: Verifier

    def propose(self, sequences: Sequence[TokenSequence], limits: Sequence[int]) -> list[Draft]:
        """For each sequence a draft of at most limits[b] tokens, which follow its tokens."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Forget all sequences but these, given by their places in the last call."""
        ...


class OpenDrafter(Drafter, Protocol):
    """A drafter whose sequences come and go. One with a method `wants` says by that for which of them it would read on;
    the others read for all."""

    def admit(self, sequence: TokenSequence) -> None:
        """Hold a state for this sequence, too, behind the others. ValueError where there is no room."""
        ...

    def read_on(self, sequence: TokenSequence, row: int, most: int) -> int:
        """Read at most `most` more tokens of this sequence, the one at place `row`, ahead of drafting; how many are
        left to read then."""
        ...

    def leave(self, index: int) -> None:
        """The sequence of this index will not be seen again; `select` has left it out."""
        ...
