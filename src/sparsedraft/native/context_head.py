"""The rows of a head that are multiplied: those of the most frequent tokens, and those of a text's own.

The head is laid out with its most frequent rows first (see NativeModel.head_base). It is multiplied a tile of rows at a
time, so a token of the text brings its neighbours along.
"""

from collections.abc import Iterable, Sequence

import numpy as np


class ContextHead:
    """Which tiles of the head each of several texts uses.

    `order` [V]: the token of each row; the first `base` of them are in use always. `tile`: rows of a tile.
    """

    def __init__(self, order: np.ndarray, base: int, tile: int, texts: int) -> None:
        self._tokens, self._tile = order, tile
        self._tile_of = np.empty(len(order), np.int64)
        self._tile_of[order] = np.arange(len(order)) // tile
        self._base = -(-base // tile)
        self._own = [self._fresh() for _ in range(texts)]
        self._update()

    def _fresh(self) -> np.ndarray:
        own = np.zeros(-(-len(self._tokens) // self._tile), bool)
        own[: self._base] = True
        return own

    def know(self, text: int, ids: Sequence[int]) -> bool:
        """Use the rows of `ids` for this text; whether that is new for any."""
        own = self._own[text]
        own[self._tile_of[np.asarray(ids, np.int64)]] = True
        if not (own & ~self._used).any():
            return False
        self._update()
        return True

    def select(self, texts: Iterable[int]) -> None:
        """Keep these texts, in this order."""
        self._own = [self._own[text] for text in texts]
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
