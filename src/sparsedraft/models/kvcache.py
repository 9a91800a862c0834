"""A KV cache that grows in place, so that a step writes one token instead of copying all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE = 256  # tokens of room made at each growth, at least


class GrowingLayer(DynamicLayer):
    """DynamicLayer over a buffer with spare room, so that `crop` only shortens the view.

    It keeps all tokens, even where the model attends to a sliding window (the model makes that mask itself): a windowed
    cache drops tokens that a roll-back needs.
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


def _append(room: Tensor, keys: Tensor, new: Tensor, used: int) -> tuple[Tensor, Tensor]:
    """(buffer, view of the used part) with `new` written behind `held`."""
    total = used + new.shape[-2]
    if room.shape[0] != new.shape[0] or room.shape[-2] < total:
        capacity = total + max(SPARE, total // 2)
        room = torch.empty(*new.shape[:2], capacity, new.shape[3], dtype=new.dtype, device=new.device)
        room[..., :used, :] = keys
    room[..., used:total, :] = new
    return room, room[..., :total, :]


def new_cache() -> Cache:
    """An empty cache for any decoder-only model."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def keys_and_values(cache: Cache) -> Iterator[tuple[Tensor, Tensor]]:
    """(keys, values) [B, heads, length, dim] of every layer of a `new_cache`."""
    for layer in cache.layers:
        assert isinstance(layer, GrowingLayer)
        yield layer.keys, layer.values


@dataclass
class Placement:
    """Where the next `update` of every RaggedLayer of one cache writes.

    The first `counts[b]` new tokens of row b go to the slots from `starts[b]` on. `width` is the number of slots that
    attention then sees.
    """

    starts: list[int]
    counts: list[int]

    @property
    def width(self) -> int:
        """Slots in use after the update, of the row that has most."""
        return max(s + n for s, n in zip(self.starts, self.counts, strict=True))


class RaggedLayer(DynamicLayer):
    """Rows of different lengths, each from slot 0 on and without holes, so that a slot is a position in its sequence.

    Slots after a row's end are never read: the caller's mask excludes them (see `writers.transformers.masks`).
    """

    placement: Placement

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values [B, heads, n, dim] at the rows' own places; return those up to the longest."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room_k, self._room_v = key_states[..., :0, :], value_states[..., :0, :]
        width = self.placement.width
        self._room_k = self._written(self._room_k, key_states, width)
        self._room_v = self._written(self._room_v, value_states, width)
        self.keys, self.values = self._room_k[..., :width, :], self._room_v[..., :width, :]
        return self.keys, self.values

    def _written(self, room: Tensor, new: Tensor, width: int) -> Tensor:
        if room.shape[-2] < width:
            # not empty: a NaN in an unused slot would spread
            grown = new.new_zeros(*new.shape[:2], width + max(SPARE, width // 2), new.shape[3])
            grown[..., : room.shape[-2], :] = room
            room = grown
        for row, (start, count) in enumerate(zip(self.placement.starts, self.placement.counts, strict=True)):
            room[row, :, start : start + count] = new[row, :, :count]
        return room

    def shorten(self, width: int) -> None:
        """Show the first `width` slots only, for a model that makes its mask from the cache's length."""
        if self.is_initialized:
            self.keys, self.values = self._room_k[..., :width, :], self._room_v[..., :width, :]

    def move(self, row: int, slots: Tensor, start: int) -> None:
        """Copy the keys and values of row `row` from `slots` [n] to the slots from `start` on."""
        for room in (self._room_k, self._room_v):
            room[row, :, start : start + len(slots)] = room[row, :, slots]

    def select(self, rows: Tensor) -> None:
        """Keep these rows only."""
        self._room_k, self._room_v = self._room_k[rows], self._room_v[rows]


def ragged_cache() -> tuple[Cache, Placement]:
    """An empty cache of RaggedLayers, and the placement that all of them follow (to be set before each forward)."""
    shared = Placement([0], [0])

    class Layer(RaggedLayer):
        placement = shared

    return Cache(layer_class_to_replicate=Layer), shared


def check_selected(rows: Sequence[int], count: int) -> None:
    """Raise ValueError unless each of `rows` is one of `count`, and named once."""
    if len(set(rows)) < len(rows) or not all(0 <= row < count for row in rows):
        raise ValueError(f"selected rows {[*rows]} must be among the {count} that are there, each once")
