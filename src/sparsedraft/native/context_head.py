"""The rows of a head that are multiplied: those of the most frequent tokens, and those of a text's own.

The head is laid out with its most frequent rows first (see NativeModel.head_base). It is multiplied a tile of rows at a
time, so a token of the text brings its neighbours along.
"""

from collections.abc import Iterable, Sequence

import numpy as np


class ContextHead:
    """Which tiles of the head each of several texts uses.

    `order` [V]: the token of each row; the first `base` of them are in use always. `tile`: rows of a tile. A text of
    which nothing is known uses the whole head.
    """

    def __init__(self, order: np.ndarray, base: int, tile: int, texts: int) -> None:
        self._tokens, self._tile = order, tile
        self._tile_of = np.empty(len(order), np.int64)
        self._tile_of[order] = np.arange(len(order)) // tile
        self._base = -(-base // tile)
        self._own = [np.ones(-(-len(order) // tile), bool) for _ in range(texts)]
        self._known = [False] * texts
        self._update()

    def _fresh(self) -> np.ndarray:
        own = np.zeros(-(-len(self._tokens) // self._tile), bool)
        own[: self._base] = True
        return own

    def know(self, text: int, ids: Sequence[int]) -> bool:
        """Use the rows of `ids` for this text, too; whether that changes what is multiplied."""
        before = self._used
        if not self._known[text]:
            self._own[text], self._known[text] = self._fresh(), True
        self._own[text][self._tile_of[np.asarray(ids, np.int64)]] = True
        self._update()
        return not np.array_equal(before, self._used)

    def idle(self, text: int) -> bool:
        """Use nothing of this text's own until something is known of it again; whether that changes anything."""
        before = self._used
        self._own[text], self._known[text] = self._fresh(), False
        self._update()
        return not np.array_equal(before, self._used)

    def select(self, texts: Iterable[int]) -> None:
        """Keep these texts, in this order."""
        texts = list(texts)
        self._own, self._known = [self._own[text] for text in texts], [self._known[text] for text in texts]
        self._update()

    def _update(self) -> None:
        self._used = np.logical_or.reduce(self._own)
        self._used_rows = np.repeat(self._used, self._tile)[: len(self._tokens)]
        self.ids = self._tokens[self._used_rows]

    @property
    def tiles(self) -> list[int]:
        """The tiles that any text uses, ascending; `ids` are the tokens of their rows."""
        return np.flatnonzero(self._used).tolist()

    def columns(self, text: int) -> np.ndarray:
        """Which of `ids` this text uses: bool."""
        return np.repeat(self._own[text], self._tile)[: len(self._tokens)][self._used_rows]
