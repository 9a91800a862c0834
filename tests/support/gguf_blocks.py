"""Random weights in the blocks of GGUF files, and what the gguf package reads in them."""

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray
from torch import Tensor

from sparsedraft.native.blocks import BLOCKS

KINDS = tuple(BLOCKS)


def random_blocks(kind: str, rows: int, columns: int, size: float = 0.01, seed: int = 0) -> NDArray[np.uint8]:
    """Blocks uint8 [rows, bytes] of any codes and scales; float16 numbers of about `size`, negative ones, too."""
    block, rng = BLOCKS[kind], np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, columns // block.inputs, block.bytes), dtype=np.uint8)
    for at in block.halves:
        halves = (rng.standard_normal((*raw.shape[:2], 1)) * size).astype(np.float16)
        raw[..., at : at + 2] = halves.view(np.uint8)
    return raw.reshape(rows, -1)


def dequantised(kind: str, raw: NDArray[np.uint8]) -> Tensor:
    """The weights float32 [rows, columns] as the gguf package reads them."""
    return torch.from_numpy(quants.dequantize(raw, GGMLQuantizationType[kind.upper()])).view(len(raw), -1)
