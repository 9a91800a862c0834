"""Weights as ggml stores them: floats, and Q8_0 and Q4_0, where each 32 inputs of a row are a block with one scale.

A block of Q8_0 is its scale d (float16) and 32 codes of int8: weight = d · code. A block of Q4_0 is d and 16 bytes of
two codes each, the first 16 inputs in the low halves: weight = d · (half - 8). Zeros stay zeros, since 0 has a code.
"""

from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.quantization import Codes

BLOCK = 32  # inputs that share a scale
LARGEST = 127  # of the codes of int8
FLOATS = {  # by ggml's type
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


@dataclass(frozen=True)
class Stored:
    """Rows as a file has them: `data` uint8 [rows, bytes of a row], and how many of their weights are zero."""

    data: NDArray[np.uint8]
    zeros: int


def row_bytes(kind: GGMLQuantizationType, columns: int) -> int:
    """Bytes of a row of so many inputs."""
    block, size = GGML_QUANT_SIZES[kind]
    return columns // block * size


def floats(weight: Tensor, kind: GGMLQuantizationType) -> Stored:
    """`weight` [rows, columns] in the float type `kind`, rounded to the nearest, a half to the even.

    UserError for a weight that the type does not hold.
    """
    typed = weight.to(FLOATS[kind]).contiguous()
    if not is_finite(typed):
        raise UserError(f"a weight does not fit {kind.name} or is not finite: mend the checkpoint.")
    bits = typed.view(torch.int32 if kind == GGMLQuantizationType.F32 else torch.int16)
    return Stored(typed.view(torch.uint8).numpy(), bits.numel() - int(torch.count_nonzero(bits << 1)))  # no signs


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite. (`isfinite` of all values takes ten times as long.)"""
    return bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def q4_0(codes: Codes) -> Stored:
    """int4 codes, bit for bit; each 32 inputs get the scale of their group. The columns are a multiple of 32."""
    halves = (codes.codes + 8).view(torch.uint8).unflatten(1, (-1, 2, BLOCK // 2))
    data = torch.cat((_bytes(_scales(codes)), halves[:, :, 0] | halves[:, :, 1] << 4), dim=-1)
    return Stored(data.flatten(1).numpy(), codes.codes.numel() - int(torch.count_nonzero(codes.codes)))


def q8_0(codes: Tensor, scale: Tensor) -> Stored:
    """`codes` int8 [rows, columns] with `scale` float16 [rows, columns / 32]."""
    blocks = codes.unflatten(1, (-1, BLOCK))
    data = torch.cat((_bytes(scale), blocks.contiguous().view(torch.uint8)), dim=-1)
    kept = torch.count_nonzero(blocks, dim=-1) * (scale != 0)
    return Stored(data.flatten(1).numpy(), codes.numel() - int(kept.sum()))


def q8_0_of_int4(codes: Codes) -> Stored:
    """int4 codes as codes of int8 with the same scales: the same weights."""
    return q8_0(codes.codes, _scales(codes))


def q8_0_of_int8(codes: Tensor, scale: Tensor) -> tuple[Stored, float]:
    """(int8 codes [rows, columns] bit for bit with their `scale` float32 [rows] in float16; its largest change).

    The change is relative: at most 2^-11 for scales from 2^-14 on. UserError for a scale that float16 does not hold.
    """
    half = _half(scale)
    change = float(((half.float() - scale).abs() / scale).max())
    return q8_0(codes, half[:, None].expand(-1, codes.shape[1] // BLOCK)), change


def q8_0_of_floats(weight: Tensor) -> Stored:
    """`weight` [rows, columns] rounded: the scale of a block is max|w| / 127 in float16, codes are the nearest."""
    blocks = weight.float().unflatten(1, (-1, BLOCK))
    scale = _half(blocks.abs().amax(-1) / LARGEST)
    divisor = torch.where(scale == 0, 1, scale.float())[..., None]
    codes = (blocks / divisor).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return q8_0(codes.flatten(1), scale)


def _half(scale: Tensor) -> Tensor:
    half = scale.half()
    if not is_finite(half):
        raise UserError("a weight does not fit Q8_0 or is not finite: mend the checkpoint, or give --gguf bf16.")
    return half


def _scales(codes: Codes) -> Tensor:
    """A scale for each 32 inputs, float16 [rows, columns / 32]."""
    return codes.scale.repeat_interleave(codes.group // BLOCK, dim=1)[:, : codes.codes.shape[1] // BLOCK]


def _bytes(scale: Tensor) -> Tensor:
    """float16 [rows, n] as uint8 [rows, n, 2]."""
    return scale.contiguous().view(torch.uint8).unflatten(1, (-1, 2))
