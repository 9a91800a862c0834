"""A Backend that remembers what it read, so that decoding one prompt again and again reads it once."""

from collections.abc import Sequence

from torch import Tensor

from sparsedraft.speculate.backend import TreeBackend
from sparsedraft.speculate.drafters import shared


class PrefixCache:
    """`backend`, of one row, for one decoding after another: after `begin` it looks empty, and of what is then appended
    only what differs from what its cache still holds is read."""

    def __init__(self, backend: TreeBackend) -> None:
        self.backend, self.max_length = backend, backend.max_length
        self._held: list[int] = []  # the tokens in the cache, of which the first `_length` count
        self._length = 0
        self.draft = self._draft if hasattr(backend, "draft") else None  # of the native engine alone

    def begin(self) -> None:
        """Look empty."""
        self._length = 0

    @property
    def lengths(self) -> list[int]:
        return [self._length]

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        (new,), (wanted,) = ids, logits
        known = min(shared(self._held[self._length :], new), len(new) - max(1, wanted))
        self._cut(self._length + known)
        found = self.backend.forward([new[known:]], [wanted])
        self._held += new[known:]
        self._length = len(self._held)
        return found

    def _draft(self, k: int, ids: Sequence[int]) -> list[int]:
        """See runtime.engine.Rows."""
        known = min(shared(self._held[self._length :], ids), len(ids) - 1)
        self._cut(self._length + known)
        tokens = self.backend.draft(k, ids[known:])  # type: ignore[attr-defined]
        self._held += [*ids[known:], *tokens[:-1]]
        self._length = len(self._held)
        return tokens

    def forward_tree(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        self._cut(self._length)
        found = self.backend.forward_tree(ids, parents)
        self._held += ids
        self._length = len(self._held)
        return found

    def keep(self, length: int, nodes: Sequence[int]) -> None:
        self.backend.keep(length, nodes)
        self._held = [*self._held[:length], *(self._held[length + node] for node in nodes)]
        self._length = len(self._held)

    def rollback(self, lengths: Sequence[int]) -> None:
        if lengths[0] < self._length:  # what follows may be a tree's nodes: no text to be taken up again
            self._cut(lengths[0])
            self._length = lengths[0]

    def select(self, rows: Sequence[int]) -> None:
        """One row: nothing to choose."""

    def _cut(self, length: int) -> None:
        if length < len(self._held):
            self.backend.rollback([length])
            del self._held[length:]
