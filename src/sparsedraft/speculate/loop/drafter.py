"""What proposes tokens."""

from collections.abc import Sequence
from typing import Protocol

from sparsedraft.speculate.loop.sequence import Draft, TokenSequence


class Drafter(Protocol):
    """Proposes tokens for rows of sequences. It may hold a state per row, in the order of the rows it is given."""

    def propose(self, rows: Sequence[TokenSequence], wanted: Sequence[int]) -> list[Draft]:
        """At most wanted[b] tokens to follow rows[b].tokens."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Only these rows go on (by their place in the last call)."""
        ...
