"""A KV cache that grows in place, so that a step writes one token instead of copying all of them."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE = 256  # tokens of room made at each growth, at least


class GrowingLayer(DynamicLayer):
    """DynamicLayer over a buffer with spare room; `crop` then only shortens the view of it.

    It caches in full also where the model attends to a sliding window (the model makes that mask itself): a windowed
    cache has thrown away what a roll-back needs.
    """

    keys: Tensor
    values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, heads, n, dim]; return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys = self._room_k = key_states[..., :0, :]
            self.values = self._room_v = value_states[..., :0, :]
        used = self.keys.shape[-2]
        self._room_k, self.keys = _append(self._room_k, self.keys, key_states, used)
        self._room_v, self.values = _append(self._room_v, self.values, value_states, used)
        return self.keys, self.values


def _append(room: Tensor, held: Tensor, new: Tensor, used: int) -> tuple[Tensor, Tensor]:
    """(buffer, view of the used part) with `new` written behind `held`."""
    total = used + new.shape[-2]
    if room.shape[0] != new.shape[0] or room.shape[-2] < total:
        capacity = total + max(SPARE, total // 2)
        room = torch.empty(*new.shape[:2], capacity, new.shape[3], dtype=new.dtype, device=new.device)
        room[..., :used, :] = held
    room[..., used:total, :] = new
    return room, room[..., :total, :]


def new_cache() -> Cache:
    """An empty cache for any decoder-only model."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def held(cache: Cache) -> Iterator[tuple[Tensor, Tensor]]:
    """(keys, values) [B, heads, length, dim] of every layer of a `new_cache`."""
    for layer in cache.layers:
        assert isinstance(layer, GrowingLayer)
        yield layer.keys, layer.values
