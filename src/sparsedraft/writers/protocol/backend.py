"""What the decoding loop needs of a model: feed tokens, get logits, take tokens back."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Backend(Protocol):
    """A model with the KV caches of one or several sequences, its rows."""

    max_length: int | None  # tokens that fit in its context

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each row."""
        ...

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        """Append ids[b] to row b; return for each row the logits [logits[b], V] after the last of them.

        A row may get no ids; then it gets no logits.
        """
        ...

    def rollback(self, lengths: Sequence[int]) -> None:
        """Keep only the first lengths[b] tokens of each row."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Forget all other rows. ValueError for a row that does not exist or is named twice; nothing changes then."""
        ...


class OpenBackend(Backend, Protocol):
    """A Backend whose rows come and go."""

    def admit(self, ids: Sequence[int]) -> int:
        """Add a row behind the others, whose text will begin with `ids`; how many of these it holds already, not all.

        ValueError where there is no room.
        """
        ...


class TreeBackend(Backend, Protocol):
    """A Backend that reads draft trees, too."""

    def forward_tree(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Logits [n, V] after n more nodes of a tree behind the one row's tokens; `ids` are those of these nodes.

        `parents` (as in `masks.tree`) holds all nodes so far. They count as cached, one behind the other, until `keep`
        or `rollback`.
        """
        ...

    def keep(self, length: int, nodes: Sequence[int]) -> None:
        """After `forward_tree` on `length` cached tokens: keep those and these nodes, a path from the tree's root."""
        ...
