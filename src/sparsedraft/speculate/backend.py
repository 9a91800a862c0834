"""What the decoding loop needs of a model: feed n tokens, get logits, take tokens back."""

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.decoder import context_length
from sparsedraft.kvcache import new_cache


class Backend(Protocol):
    """A model with the KV cache of one sequence."""

    max_length: int | None  # tokens that fit in its context

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        ...

    def forward(self, ids: list[int], logits: int) -> Tensor:
        """Append `ids` to the cache; return the logits [logits, V] after the last `logits` of them."""
        ...

    def rollback(self, length: int) -> None:
        """Keep only the first `length` tokens in the cache."""
        ...


class TransformersBackend:
    """A transformers model as a Backend; counts its forward passes."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.max_length = context_length(model)
        self.passes = 0
        self._length = 0
        self._cache = new_cache()

    @property
    def length(self) -> int:
        return self._length

    @torch.inference_mode()
    def forward(self, ids: list[int], logits: int) -> Tensor:
        self.passes += 1
        tokens = torch.tensor([ids], device=self.model.device)
        out = self.model(input_ids=tokens, cache=self._cache, use_cache=True, logits_to_keep=logits)
        self._length += len(ids)
        return out.logits[0]

    def rollback(self, length: int) -> None:
        if length < self._length:
            self._cache.crop(length - self._length)  # negative: how many to take back
            self._length = length
