"""A transformers model as a backend: rows of different lengths in one cache, and draft trees."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.models.decoder import context_length
from sparsedraft.models.kvcache import RaggedLayer, check_selected, ragged_cache
from sparsedraft.writers.transformers import masks

RAGGED = 64  # with more unused logits than this in a row, a second pass is cheaper


class TransformersBackend:
    """A transformers model as a TreeBackend; counts its forward passes."""

    def __init__(self, model: PreTrainedModel, rows: int = 1) -> None:
        self.model = model
        self.max_length = context_length(model)
        self.passes = 0
        self._lengths = [0] * rows
        self._cache, self._placement = ragged_cache()

    @property
    def lengths(self) -> list[int]:
        return list(self._lengths)

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        if len(ids) == 1:
            return [self._single(list(ids[0]), logits[0])]
        if not any(logits):  # what is read ahead: the model is to make one logit a row, and none is wanted
            return [*self._several(ids, 1)[:, :0]]
        counts = [len(row) for row in ids]
        early = min(n - k for n, k in zip(counts, logits, strict=True))
        if max(counts) - early > RAGGED + max(logits):  # rows of very different lengths: their ends in a second pass
            heads = [row[: len(row) - k] for row, k in zip(ids, logits, strict=True)]
            self._several(heads, 1)
            ids = [row[len(row) - k :] for row, k in zip(ids, logits, strict=True)]
            counts, early = [len(row) for row in ids], 0
        found = self._several(ids, max(counts) - early)
        return [found[b, n - k - early : n - early] for b, (n, k) in enumerate(zip(counts, logits, strict=True))]

    def _single(self, ids: list[int], logits: int) -> Tensor:
        """One row needs no mask of ours, and runs on every family."""
        out = self._run([ids], [len(ids)], None, logits)
        return out[0]

    def _several(self, ids: Sequence[Sequence[int]], logits: int) -> Tensor:
        counts = [len(row) for row in ids]
        _, window = masks.windows(self.model)
        full = masks.ragged(self._lengths, counts)
        windowed = None if window is None else masks.ragged(self._lengths, counts, window)
        padded = [[*row, *[0] * (max(counts) - len(row))] for row in ids]
        # Padding has the place of the token before it, or none: the last place of a pass may choose its frequencies.
        count = torch.tensor(counts)[:, None]
        places = torch.tensor(self._lengths)[:, None] + torch.minimum(torch.arange(max(counts))[None], count - 1)
        positions = torch.where(count > 0, places, 0)
        mask = masks.fitted(self.model, full, windowed)
        return self._run(padded, counts, (mask, positions), logits)

    def forward_tree(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        new = len(ids)
        start = self._lengths[0] - (len(parents) - new)
        _, window = masks.windows(self.model)
        full = masks.tree(start, parents, new)
        windowed = None if window is None else masks.tree(start, parents, new, window)
        positions = torch.tensor([masks.depths(parents)[-new:]]) + start
        mask = masks.fitted(self.model, full, windowed)
        return self._run([list(ids)], [new], (mask, positions), new)[0]

    @torch.inference_mode()
    def _run(
        self,
        ids: list[list[int]],
        counts: list[int],
        placed: tuple[Tensor | dict[str, Tensor], Tensor] | None,
        logits: int,
    ) -> Tensor:
        self.passes += 1
        self._placement.starts, self._placement.counts = list(self._lengths), counts
        device = self.model.device
        extra = {} if placed is None else {"attention_mask": placed[0], "position_ids": placed[1].to(device)}
        out = self.model(
            input_ids=torch.tensor(ids, device=device), cache=self._cache, use_cache=True, logits_to_keep=logits,
            **extra,
        )  # fmt: skip
        self._lengths = [length + n for length, n in zip(self._lengths, counts, strict=True)]
        return out.logits

    @torch.inference_mode()
    def keep(self, length: int, nodes: Sequence[int]) -> None:
        if list(nodes) != list(range(len(nodes))):
            slots = torch.tensor(nodes, device=self.model.device) + length
            for layer in self._layers():
                layer.move(0, slots, length)
        self.rollback([length + len(nodes)])

    def rollback(self, lengths: Sequence[int]) -> None:
        self._lengths = [min(pair) for pair in zip(self._lengths, lengths, strict=True)]
        for layer in self._layers():
            layer.shorten(max(self._lengths, default=0))

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        check_selected(rows, len(self._lengths))
        self._lengths = [self._lengths[b] for b in rows]
        for layer in self._layers():
            layer.select(torch.tensor([*rows], dtype=torch.long, device=self.model.device))
            layer.shorten(max(self._lengths, default=0))

    def _layers(self) -> list[RaggedLayer]:
        return [layer for layer in self._cache.layers if isinstance(layer, RaggedLayer) and layer.is_initialized]
