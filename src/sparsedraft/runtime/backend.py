"""The native engine as the decoding loop's Backend: one engine for each row, weights and threads shared."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsedraft.runtime.engine import Engine
from sparsedraft.runtime.model import NativeModel


class NativeBackend:
    """A native model as a Backend (see speculate.backend). Rows take turns: each reads the weights for itself."""

    def __init__(self, model: NativeModel, rows: int = 1, *, threads: int | None = None) -> None:
        first = Engine(model, threads=threads)
        self._engines = [first, *(Engine(model, pool=first.pool) for _ in range(rows - 1))]
        self.max_length = first.max_length
        self.passes = 0

    @property
    def lengths(self) -> list[int]:
        return [engine.length for engine in self._engines]

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        self.passes += 1
        width = self._engines[0].model.handle.vocabulary if self._engines else 0
        return [
            engine.forward(row, k) if row else torch.empty(0, width)
            for engine, row, k in zip(self._engines, ids, logits, strict=True)
        ]

    def forward_tree(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        self.passes += 1
        return self._engines[0].forward(ids, len(ids), parents)

    def keep(self, length: int, nodes: Sequence[int]) -> None:
        self._engines[0].keep(length, nodes)

    def rollback(self, lengths: Sequence[int]) -> None:
        for engine, n in zip(self._engines, lengths, strict=True):
            engine.rollback(n)

    def select(self, rows: Sequence[int]) -> None:
        self._engines = [self._engines[b] for b in rows]
