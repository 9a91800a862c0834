"""The native engine: one sequence, its cache, and the logits of whatever follows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedraft.runtime.model import NativeModel, native_model
from sparsedraft.runtime.native import extension
from sparsedraft.sources import locate


class Engine:
    """A model and one sequence of it.

    `model` is a checkpoint folder (packed or plain), or a NativeModel that several engines share. `threads` defaults to
    torch's; `pool` are the threads of another engine. An engine belongs to one thread at a time, two run side by side. The logits of a token have the same
    bits whether it was read alone or with others, so what is decoded does not depend on how it was drafted.

    Raises UserError where the model cannot run natively.
    """

    def __init__(
        self, model: str | Path | NativeModel, *, threads: int | None = None, kernels: str | None = None, pool: Any = None
    ) -> None:
        self.model = model if isinstance(model, NativeModel) else native_model(locate(str(model)))
        self.pool = pool or extension().Pool(threads or torch.get_num_threads())
        self._engine: Any = extension().Engine(self.model.handle, self.pool, kernels)
        self._ids = None if self.model.head_ids is None else self.model.head_ids
        self._map = [] if self._ids is None else self._ids.tolist()

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._engine.length

    @property
    def max_length(self) -> int | None:
        """Tokens that fit in the context."""
        return self.model.handle.max_length or None

    def forward(self, ids: Sequence[int], logits: int = 1, parents: Sequence[int] | None = None) -> Tensor:
        """Append `ids`; return the float32 logits [logits, V] after the last of them (-inf outside of a trimmed head).

        With `parents`, `ids` are the last nodes of a tree behind the sequence, whose parent each is (-1: its end).
        Raises ValueError for ids outside of the vocabulary, or more than the context holds.
        """
        found = torch.from_numpy(self._engine.forward(list(ids), logits, None if parents is None else list(parents)))
        if self._ids is None:
            return found
        whole = found.new_full((logits, self.model.handle.vocabulary), -torch.inf)
        whole[:, self._ids] = found
        return whole

    def rollback(self, n: int) -> None:
        """Keep only the first `n` tokens."""
        self._engine.rollback(n)

    def keep(self, length: int, nodes: Sequence[int]) -> None:
        """After a tree behind `length` tokens: keep those, and these of its nodes."""
        self._engine.keep(length, list(nodes))

    def draft(self, k: int, last: int) -> list[int]:
        """The `k` likeliest tokens, one after the other, after the token `last`; all but the last of them are then cached."""
        return self._engine.draft(last, k, self._map)
