"""Weights in the blocks of GGUF files, as the file has them. csrc/layout/blocks.hpp says what their numbers mean."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.native import extension

CHUNK = 1 << 22  # weights that are dequantised at once


@dataclass(frozen=True)
class BlockType:
    """Blocks of `inputs` neighbouring inputs of a row, `bytes` long; `halves`: where a float16 begins in each."""

    inputs: int
    bytes: int
    halves: tuple[int, ...]


BLOCKS = {
    "q8_0": BlockType(32, 34, (0,)),
    "q4_1": BlockType(32, 20, (0, 2)),
    "q5_0": BlockType(32, 22, (0,)),
    "q5_1": BlockType(32, 24, (0, 2)),
    "q4_k": BlockType(256, 144, (0, 2)),
    "q5_k": BlockType(256, 176, (0, 2)),
    "q6_k": BlockType(256, 210, (208,)),
}


def columns_of(kind: str, size: int) -> int:
    """Inputs of a row whose blocks are `size` bytes long."""
    return size // BLOCKS[kind].bytes * BLOCKS[kind].inputs


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row's blocks."""
    return columns // BLOCKS[kind].inputs * BLOCKS[kind].bytes


def finite(kind: str, values: Tensor) -> bool:
    """Whether all scales of the blocks uint8 [rows, bytes] are finite."""
    block = BLOCKS[kind]
    apart = values.view(-1, block.bytes)
    return all(bool(torch.isfinite(apart[:, at : at + 2].clone().view(torch.float16)).all()) for at in block.halves)


def reader() -> Any:
    """The package `gguf`; UserError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError(
            "weights in the blocks of GGUF files are read by the package gguf: pip install 'sparsedraft[gguf]'."
        ) from None
    return gguf


def weight(kind: str, values: Tensor) -> Tensor:
    """The weights float32 [rows, columns] of blocks uint8 [rows, bytes], as the `gguf` package computes them.

    UserError where that is not installed.
    """
    gguf = reader()
    dequantised = gguf.quants.dequantize(values.numpy(), gguf.GGMLQuantizationType[kind.upper()])
    return torch.from_numpy(np.ascontiguousarray(dequantised, np.float32)).view(len(values), -1)


def nonzero(kind: str, values: Tensor) -> int:
    """How many weights of the blocks uint8 [rows, bytes] are not zero."""
    columns = columns_of(kind, values.shape[1])
    if extension.available():
        return int(extension.extension().nonzero_of_blocks(values.contiguous().numpy(), kind, columns))
    parts = values.split(max(1, CHUNK // columns))
    return sum(int(torch.count_nonzero(weight(kind, part))) for part in parts)
