"""Packed matrices as torch modules of transformers models. Inference only: no gradient reaches their weights.

On CPUs the native kernels multiply, in float32. Elsewhere, without the extension, and where a gradient must pass
through the input, the weight is dequantised once and torch multiplies.
"""

import atexit
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsedraft.base.errors import UserError
from sparsedraft.native import extension as native
from sparsedraft.native import layout
from sparsedraft.native.nibbles import unpack_nibbles
from sparsedraft.native.packed_format import PARTS, MatrixEntry, unpack_matrix
from sparsedraft.native.stored_matrix import StoredMatrix


@cache  # never emptied: a forked process has no copies of the threads, and would wait for ever to end them
def _pool(process: int, threads: int) -> Any:
    return native.pool(threads)


atexit.register(_pool.cache_clear)  # before Python forgets the type of the pool


class PackedModule(nn.Module):
    """A packed matrix [rows, columns]: buffers `values`, `index`, `scale` as stored (see native.packed_format).

    `dtype` is that of the model around it, and of what an embedding gives. Buffers keep their stored dtypes whatever
    the model is cast to. They stay beside the laid-out matrix, because other devices and `dequantize` need them; as
    loaded from a file they are mapped, and take no memory of the process until they are read.
    """

    def __init__(
        self, name: str, entry: MatrixEntry, parts: dict[str, Tensor], original: nn.Module, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.name, self.entry, self.dtype = name, entry, dtype
        self.original = (original,)  # its weight is on the meta device; in a tuple, so that it is no submodule
        self._dense: Tensor | None = None
        self._matrix: Any = None
        for part in PARTS:
            if part in parts:
                self.register_buffer(part, parts[part])

    def unpacked(self) -> StoredMatrix:
        """What is stored, in CPU memory; UserError where it is damaged."""
        stored = {part: buffer.cpu() for part, buffer in self._buffers.items() if buffer is not None}
        return unpack_matrix(self.name, self.entry, stored)

    def prepare(self) -> None:
        """Check what was loaded (UserError where it is damaged)."""
        self.unpacked()

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The weight [rows, columns]; the last result is kept."""
        if self._dense is None or self._dense.dtype != dtype or self._dense.device != device:
            self._dense = self._dequantised(dtype).to(device)
        return self._dense

    def _dequantised(self, dtype: torch.dtype) -> Tensor:
        return self.unpacked().weight(dtype)

    @property
    def weight(self) -> Tensor:
        """The weight [rows, columns] in the model's dtype, dequantised at each call unless it is kept."""
        return self._dequantised(self.dtype) if self._dense is None else self._dense.to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedModule":
        stored = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in stored.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        probe = fn(torch.empty(0, dtype=self.dtype))
        self.dtype = probe.dtype
        if probe.device.type != "cpu":
            self._matrix = None  # not used there
        return self

    def __getstate__(self) -> dict[str, Any]:  # the laid-out matrix cannot be copied: a copy makes its own
        return {**self.__dict__, "_dense": None, "_matrix": None}


class PackedLinear(PackedModule):
    """y = W x + b: for x [..., columns] of any float dtype, y [..., rows] of the same. `bias` is a parameter."""

    def __init__(
        self, name: str, entry: MatrixEntry, parts: dict[str, Tensor], original: nn.Linear, dtype: torch.dtype
    ) -> None:
        super().__init__(name, entry, parts, original, dtype)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", original.bias)
        self.in_features, self.out_features = original.in_features, original.out_features

    def prepare(self) -> None:
        """Check what was loaded and lay it out for this CPU; UserError where it is damaged."""
        buffer = self._buffers.get("values")
        if native.available() and (buffer is None or buffer.is_cpu):
            self._native()
        else:
            self.unpacked()

    def _native(self) -> Any:
        if self._matrix is None:
            try:
                self._matrix, _ = layout.lay_out(self.unpacked(), self.entry.kind)
            except ValueError as error:
                raise UserError(f"packed matrix {self.name} cannot be laid out ({error}): pack it again.") from None
        return self._matrix

    def product(self, x: Tensor) -> Tensor:
        """W x: [..., rows] for x [..., columns], in the dtype of x, or in float32 from the native kernels."""
        if not x.is_cpu or (x.requires_grad and torch.is_grad_enabled()) or not native.available():
            return F.linear(x, self.dense(x.dtype, x.device))
        shape = (*x.shape[:-1], self.entry.rows)
        if not x.numel():
            return x.new_empty(shape)
        flat = x.detach().reshape(-1, self.entry.columns).to(torch.float32).contiguous()
        (y,) = native.extension().multiply([self._native()], flat.numpy(), _pool(os.getpid(), torch.get_num_threads()))
        return torch.from_numpy(y).view(shape)

    def forward(self, x: Tensor) -> Tensor:
        """See the class. ValueError from the kernels where x has another number of columns."""
        y = self.product(x)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class PackedEmbedding(PackedModule):
    """Rows of W by number: ids of any shape [...] give [..., columns] in the model's dtype, times `embed_scale`."""

    def __init__(
        self, name: str, entry: MatrixEntry, parts: dict[str, Tensor], original: nn.Embedding, dtype: torch.dtype
    ) -> None:
        super().__init__(name, entry, parts, original, dtype)
        self.num_embeddings, self.embedding_dim = entry.rows, entry.columns
        self.padding_idx = original.padding_idx
        self.embed_scale: float | None = getattr(original, "scalar_embed_scale", None)  # gemma's

    def forward(self, ids: Tensor) -> Tensor:
        """See the class. IndexError for an id outside of the vocabulary."""
        if self.entry.kind == "dense":  # as `pack` makes them: only these rows are dequantised
            rows = self._rows(ids.flatten()).weight(self.dtype).view(*ids.shape, -1)
        else:
            rows = F.embedding(ids, self.dense(self.dtype, ids.device))
        return rows if self.embed_scale is None else rows * torch.tensor(self.embed_scale, dtype=self.dtype)

    def _rows(self, ids: Tensor) -> StoredMatrix:
        """The rows `ids` [n] of what is stored."""
        values = self.get_buffer("values")[ids]
        if self.entry.group:
            values = unpack_nibbles(values, self.entry.columns)
        scale = self.get_buffer("scale")[ids] if "scale" in self._buffers else None
        return StoredMatrix(values, scale, self.entry.group, blocks=self.entry.blocks)


class PackedHead(PackedLinear):
    """Logits [..., V] of the whole vocabulary, -inf outside of `ids` where the head is trimmed.

    A tied head stores nothing: its rows are those of `tied`, the packed embedding. (Where a model caps its logits by
    tanh, -inf becomes minus the cap.)
    """

    def __init__(
        self,
        name: str,
        entry: MatrixEntry,
        parts: dict[str, Tensor],
        original: nn.Linear,
        dtype: torch.dtype,
        *,
        ids: Tensor | None = None,
        tied: PackedEmbedding | None = None,
    ) -> None:
        super().__init__(name, entry, parts, original, dtype)
        self.ids = ids  # not a buffer: loading would empty a buffer that is not stored
        self._tied = (tied,) if tied is not None else None  # in a tuple, so that the state dict has the embedding once

    def unpacked(self) -> StoredMatrix:
        """As in PackedModule, the rows of a trimmed head only."""
        if self._tied is None:
            return super().unpacked()
        stored = self._tied[0].unpacked()
        return stored if self.ids is None else stored.rows(self.ids.cpu())

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """As in PackedModule; one copy with the embedding where both are whole."""
        if self._tied is not None and self.ids is None:
            return self._tied[0].dense(dtype, device)
        return super().dense(dtype, device)

    @property
    def weight(self) -> Tensor:
        """As in PackedModule, [V, columns]; of a trimmed head that is not tied, the rows left out are zero."""
        if self._tied is not None:
            return self._tied[0].weight
        weight = super().weight
        if self.ids is None:
            return weight
        return weight.new_zeros(self.out_features, weight.shape[1]).index_copy(0, self.ids.to(weight.device), weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [..., V] in the dtype of x [..., columns]."""
        logits = self.product(x)
        if self.ids is not None:
            self.ids = self.ids.to(x.device)
            whole = logits.new_full((*x.shape[:-1], self.out_features), -torch.inf)
            logits = whole.index_copy(-1, self.ids, logits)
        return (logits if self.bias is None else logits + self.bias).to(x.dtype)
