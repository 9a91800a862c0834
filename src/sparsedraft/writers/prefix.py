"""A Backend that remembers what it read, so that decoding the same prompts again and again reads them once."""

from collections.abc import Sequence

from torch import Tensor

from sparsedraft.models.kvcache import check_selected
from sparsedraft.writers.protocol.backend import TreeBackend


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])


class PrefixCache:
    """`backend` for one decoding after another: after `begin` it looks empty, all its rows there again, and of what is
    then appended only what differs from what a row's cache still holds is read."""

    def __init__(self, backend: TreeBackend) -> None:
        self.backend, self.max_length, self.rows = backend, backend.max_length, len(backend.lengths)
        self._held: list[list[int]] = [[] for _ in range(self.rows)]  # the tokens in each row's cache,
        self._lengths = [0] * self.rows  # of which so many count
        self._going = list(range(self.rows))  # the rows that were not forgotten
        # the native engine's, which drafts for its first row alone
        self.draft = self._draft if self.rows == 1 and hasattr(backend, "draft") else None

    def begin(self) -> None:
        """Look empty."""
        self._lengths, self._going = [0] * self.rows, list(range(self.rows))

    def clear(self) -> None:
        """Be empty."""
        self._held = [[] for _ in range(self.rows)]
        self._cut()
        self.begin()

    @property
    def lengths(self) -> list[int]:
        return [self._lengths[row] for row in self._going]

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        unread: list[Sequence[int]] = [[]] * self.rows
        wanted = [0] * self.rows
        for row, new, n in zip(self._going, ids, logits, strict=True):
            if new:
                unread[row], wanted[row] = self._new(row, new, max(1, n)), n
        self._cut()
        found = self.backend.forward(unread, wanted)
        for row, new in enumerate(unread):
            self._append(row, new)
        return [found[row] for row in self._going]

    def _new(self, row: int, ids: Sequence[int], least: int) -> Sequence[int]:
        """What of `ids`, of which the last `least` must be read, the row's cache does not hold; the rest counts now."""
        length = self._lengths[row]
        known = min(shared(self._held[row][length:], ids), len(ids) - least)
        self._lengths[row] += known
        self._held[row] = self._held[row][: length + known]
        return ids[known:]

    def _append(self, row: int, ids: Sequence[int]) -> None:
        if ids:
            self._held[row] += ids
            self._lengths[row] = len(self._held[row])

    def _draft(self, k: int, ids: Sequence[int]) -> list[int]:
        """See native.session.Session."""
        unread = self._new(0, ids, 1)
        self._cut()
        tokens = self.backend.draft(k, unread)  # type: ignore[attr-defined]
        self._append(0, [*unread, *tokens[:-1]])
        return tokens

    def forward_tree(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        self._forget(0)
        found = self.backend.forward_tree(ids, parents)
        self._append(0, ids)
        return found

    def keep(self, length: int, nodes: Sequence[int]) -> None:
        self.backend.keep(length, nodes)
        held = self._held[0]
        self._held[0] = [*held[:length], *(held[length + node] for node in nodes)]
        self._lengths[0] = len(self._held[0])

    def rollback(self, lengths: Sequence[int]) -> None:
        for row, length in zip(self._going, lengths, strict=True):
            if length < self._lengths[row]:  # what follows may be a tree's nodes: no text to be taken up again
                self._lengths[row] = length
                self._forget(row)

    def select(self, rows: Sequence[int]) -> None:
        """The others keep what they have read, for the next time."""
        check_selected(rows, len(self._going))
        self._going = [self._going[b] for b in rows]

    def _forget(self, row: int) -> None:
        """What does not count."""
        del self._held[row][self._lengths[row] :]
        self._cut()

    def _cut(self) -> None:
        """Roll the caches back to what is held."""
        lengths = [len(held) for held in self._held]
        if lengths != self.backend.lengths:
            self.backend.rollback(lengths)
