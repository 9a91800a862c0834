"""A weight matrix as it is stored: floats, codes of int8 and int4 with their scales, or the blocks of a GGUF file."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsedraft.maths.quantization import Codes
from sparsedraft.native import blocks

# The dtype of each type of values in a file; the codes of int4 lie two in a byte, and blocks are bytes.
VALUE_TYPES = {
    "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8, "int4": torch.uint8,
    **dict.fromkeys(blocks.BLOCKS, torch.uint8),
}  # fmt: skip
FLOATS = {VALUE_TYPES[name]: name for name in ("f32", "f16", "bf16")}


@dataclass(frozen=True)
class StoredMatrix:
    """`values` [rows, columns], with zeros where nothing is stored.

    Floats have no scale. Codes of int8 have `scale` float32 [rows]. Codes of int4, from -8 to 7 in int8 each, have
    `scale` float16 [rows, ⌈columns / group⌉]: each `group` consecutive inputs share one. `activations`, of int8 only:
    bits of the inputs that the kernels multiply it with. With `blocks`, a key of blocks.BLOCKS, values are the bytes of
    such blocks, uint8 [rows, bytes], and hold their own scales.
    """

    values: Tensor
    scale: Tensor | None = None
    group: int = 0
    activations: int = 16
    blocks: str = ""

    @property
    def type(self) -> str:
        """The type of the values, a key of VALUE_TYPES."""
        if self.blocks or self.group:
            return self.blocks or "int4"
        return "int8" if self.values.dtype == torch.int8 else FLOATS[self.values.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        shape = tuple(self.values.shape)
        return (shape[0], blocks.columns_of(self.blocks, shape[1])) if self.blocks else shape

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def nonzero(self) -> int:
        """How many weights are not zero."""
        if self.blocks:
            return blocks.nonzero(self.blocks, self.values)
        return int(torch.count_nonzero(self.values))

    @property
    def density(self) -> float:
        """The share of weights that are not zero."""
        return self.nonzero / self.size

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [rows, columns]: values, or code · scale, computed in float32; UserError as blocks.weight."""
        if self.blocks:
            return blocks.weight(self.blocks, self.values).to(dtype)
        if self.scale is None:
            return self.values.to(dtype)
        if self.group:
            return Codes(self.values, self.scale, self.group).weight(dtype)
        return (self.values * self.scale[:, None]).to(dtype)

    def rows(self, ids: Tensor) -> "StoredMatrix":
        """Only these rows, in this order."""
        return replace(self, values=self.values[ids], scale=None if self.scale is None else self.scale[ids])
