"""A Backend that keeps what it has read, so that prompts that are decoded several times are read once."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from sparsedraft.models.kvcache import check_selected
from sparsedraft.writers.protocol.backend import TreeBackend


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    if (a if len(a) == n else a[:n]) == (b if len(b) == n else b[:n]):  # a copy of a long text takes longer than this
        return n
    return next(i for i in range(n) if a[i] != b[i])


def _best(free: Mapping[int, Sequence[int]], ids: Sequence[int]) -> int:
    """Which of the rows, by the tokens in their caches, serves `ids` best."""
    return max(free, key=lambda row: 2 * shared(free[row], ids) - len(free[row]))


class PrefixCache:
    """`backend` for one decoding after another, or for sequences that come and go.

    After `begin` it looks empty, with all its rows; after `vacate` it has none, and each `admit` adds one. Of the
    tokens that are then appended, it reads only those that a row's cache does not still hold.
    """

    def __init__(self, backend: TreeBackend) -> None:
        self.backend, self.max_length, self.rows = backend, backend.max_length, len(backend.lengths)
        self._cached: list[list[int]] = [[] for _ in range(self.rows)]  # the tokens in each row's cache
        self._most = [0] * self.rows  # how many it held at most: for so many it has memory
        self._lengths = [0] * self.rows  # how many of them count
        self._selected = list(range(self.rows))  # the rows that go on
        self._free: list[int] = []  # the others, those first that have been for the longest time
        self.draft = self._draft if hasattr(backend, "draft") else None  # only the native engine has it
        self.know = self._know if hasattr(backend, "know") else None

    def begin(self) -> None:
        """Look empty: no token counts, and no row is left out."""
        self._lengths, self._selected, self._free = [0] * self.rows, list(range(self.rows)), []
        self.forget()

    def vacate(self) -> None:
        """Have no sequence; what the rows have read stays, for those that are admitted."""
        self.begin()
        self.select([])

    def admit(self, ids: Sequence[int]) -> int:
        """Add a sequence behind the others, whose text is to begin with `ids`; how many of these it holds already.

        It takes the free row that serves it best: what the row has read of `ids` counts for it, what it would lose
        counts against it, and of equals the one goes that has been free for longer. ValueError where no row is free.
        """
        if not self._free:
            raise ValueError(f"all {self.rows} rows are taken: wait until one is free.")
        row = _best({row: self._cached[row] for row in self._free}, ids)
        self._free.remove(row)
        self._selected.append(row)
        self._lengths[row] = max(0, min(shared(self._cached[row], ids), len(ids) - 1))
        return self._lengths[row]

    def held(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """If these texts were admitted now, one after the other: for how many tokens the row of each has memory; 0
        where none is free. Any thread may ask."""
        free, found = {row: [*self._cached[row]] for row in [*self._free]}, []
        for ids in texts[: len(free)]:
            row = _best(free, ids)
            found.append(self._most[row])
            del free[row]
        return found + [0] * (len(texts) - len(found))

    def forget(self) -> None:
        """See native.session.Session."""
        if self.know is not None:
            self.backend.forget()  # type: ignore[attr-defined]

    def clear(self) -> None:
        """Forget everything."""
        self._cached = [[] for _ in range(self.rows)]
        self._cut()
        self.begin()

    @property
    def lengths(self) -> list[int]:
        return [self._lengths[row] for row in self._selected]

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        unread: list[Sequence[int]] = [[]] * self.rows
        logit_counts = [0] * self.rows
        for row, new, n in zip(self._selected, ids, logits, strict=True):
            if new:
                unread[row], logit_counts[row] = self._new(row, new, max(1, n)), n
        self._cut()
        outputs = self.backend.forward(unread, logit_counts)
        for row, new in enumerate(unread):
            self._append(row, new)
        return [outputs[row] for row in self._selected]

    def _new(self, row: int, ids: Sequence[int], least: int) -> Sequence[int]:
        """Those of `ids` that the row must read: what its cache lacks, and the last `least`. The rest counts now."""
        length = self._lengths[row]
        known = min(shared(self._cached[row][length:], ids), len(ids) - least)
        self._lengths[row] += known
        self._cached[row] = self._cached[row][: length + known]
        return ids[known:]

    def _append(self, row: int, ids: Sequence[int]) -> None:
        if ids:
            self._cached[row] += ids
            self._lengths[row] = len(self._cached[row])
            self._most[row] = max(self._most[row], self._lengths[row])

    def _know(self, row: int, ids: Sequence[int]) -> None:
        """See native.session.Session."""
        self.backend.know(self._selected[row], ids)  # type: ignore[attr-defined]

    def _draft(self, counts: Sequence[int], ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """See native.session.Session."""
        unread: list[Sequence[int]] = [[]] * self.rows
        drafted = [0] * self.rows
        for row, new, k in zip(self._selected, ids, counts, strict=True):
            if k > 0:
                unread[row], drafted[row] = self._new(row, new, 1), k
        self._cut()
        drafts: list[list[int]] = self.backend.draft(drafted, unread)  # type: ignore[attr-defined]
        for row, tokens in enumerate(drafts):
            self._append(row, [*unread[row], *tokens[:-1]])
        return [drafts[row] for row in self._selected]

    def forward_tree(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        self._forget(0)
        output = self.backend.forward_tree(ids, parents)
        self._append(0, ids)
        return output

    def keep(self, length: int, nodes: Sequence[int]) -> None:
        self.backend.keep(length, nodes)
        cached = self._cached[0]
        self._cached[0] = [*cached[:length], *(cached[length + node] for node in nodes)]
        self._lengths[0] = len(self._cached[0])

    def rollback(self, lengths: Sequence[int]) -> None:
        for row, length in zip(self._selected, lengths, strict=True):
            if length < self._lengths[row]:  # what follows may be a tree's nodes: no text to be taken up again
                self._lengths[row] = length
                self._forget(row)

    def select(self, rows: Sequence[int]) -> None:
        """Rows that are left out keep what they have read, for the next decoding."""
        check_selected(rows, len(self._selected))
        stay = [self._selected[b] for b in rows]
        left = [row for row in self._selected if row not in stay]
        self._free, self._selected = [*self._free, *left], stay
        if self.know is not None:
            for row in left:
                self.backend.idle(row)  # type: ignore[attr-defined]

    def _forget(self, row: int) -> None:
        """Remove from the row's cache what does not count."""
        del self._cached[row][self._lengths[row] :]
        self._cut()

    def _cut(self) -> None:
        """Roll the backend back to `_cached`."""
        lengths = [len(tokens) for tokens in self._cached]
        if lengths != self.backend.lengths:
            self.backend.rollback(lengths)
