"""Weights rounded to Q6_K, ggml's 6.56 bits a weight: for heads and embeddings that int4 would hurt.

A block holds 256 inputs of a row: weight = d · scale · (code - 32), with a code of 6 bits each, a scale of int8 for
each 16 inputs, and d in float16 for the block. Its bytes: the low halves of the codes (128), their high 2 bits (64),
the scales (16), d (2). The order of the codes inside is that of csrc/layout/blocks.hpp.
"""

import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.native import blocks

INPUTS, SUB = blocks.BLOCKS["q6_k"].inputs, 16  # inputs of a block, and of a scale
LOWEST, HIGHEST = -32, 31  # codes
# What the search gives the largest weight of a scale: the sign of the scale decides which end of the range it meets.
TRIED = (-32, -31, -30.2, -29.1, 30.2, 31)
CHUNK = 1 << 20  # weights that are rounded at once


def check_possible(columns: int, name: str) -> None:
    """UserError for a matrix whose rows are no whole blocks, or without the package that reads them back."""
    blocks.reader()
    if columns % INPUTS:
        raise UserError(f"{name} rows of {columns} are no multiple of {INPUTS}, which q6_k needs: give int8 or int4.")


def q6_k(weight: Tensor) -> Tensor:
    """`weight` [rows, columns] rounded to blocks, uint8 [rows, columns / 256 · 210]; zeros stay zeros.

    Each scale is the best of those that TRIED gives, by least squares. UserError for a weight that d cannot reach.
    """
    rows, columns = weight.shape
    parts = [_blocks(part.float().reshape(-1, INPUTS)) for part in weight.split(max(1, CHUNK // columns))]
    return torch.cat(parts).view(rows, -1)


def _blocks(W: Tensor) -> Tensor:
    """Weights [blocks, 256] as bytes [blocks, 210]."""
    apart = W.unflatten(1, (-1, SUB))  # [blocks, 16, 16]
    wanted = _least_squares(apart)
    d = _away_from_zero(wanted.gather(1, wanted.abs().argmax(1, keepdim=True)) / -128)  # the code of the largest scale
    if not bool(torch.isfinite(d).all()):
        raise UserError("a weight does not fit q6_k: give bf16.")
    unit = torch.where(d == 0, 1, d.float())
    scales = (wanted / unit).round_().clamp_(-128, 127)
    step = (scales * d.float())[..., None]
    codes = torch.where(step == 0, 0, apart / step).round_().clamp_(LOWEST, HIGHEST)
    code_bytes = _code_bytes((codes - LOWEST).to(torch.uint8))
    return torch.cat((code_bytes, scales.to(torch.int8).view(torch.uint8), d.view(torch.uint8)), 1)


def _least_squares(W: Tensor) -> Tensor:
    """The scale for each last dimension of `W`, nearly the least Σ (w - scale · code)²; 0 for zeros."""
    largest = W.gather(-1, W.abs().argmax(-1, keepdim=True))
    safe = torch.where(largest == 0, 1, largest)
    best = scale = torch.zeros_like(largest[..., 0])
    for code in TRIED:
        q = (W * (code / safe)).round_().clamp_(LOWEST, HIGHEST)
        along, norm = (q * W).sum(-1), (q * q).sum(-1)
        candidate = along / norm.clamp(min=1)
        gain = candidate * along  # Σ w² - Σ (w - s q)², at the best s for these codes
        best, scale = torch.where(gain > best, gain, best), torch.where(gain > best, candidate, scale)
    return scale


def _code_bytes(codes: Tensor) -> Tensor:
    """Codes from 0 to 63, uint8 [blocks, 16, 16], as their low halves and their high bits, [blocks, 192].

    Of each 128 codes, those that are 32 apart share bytes: four pairs of high bits in one, the low halves of the first
    and third, and of the second and fourth, in two.
    """
    four = codes.reshape(len(codes), 2, 4, 32)
    low, high = four & 15, four >> 4
    halves = low[:, :, :2] | low[:, :, 2:] << 4
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    pairs = (high << shifts).sum(2, dtype=torch.uint8)
    return torch.cat((halves.flatten(1), pairs.flatten(1)), 1)


def _away_from_zero(d: Tensor) -> Tensor:
    """Float16 of the same size or the next above: no scale is out of reach, also where float16 has few steps left."""
    half = d.half()
    return torch.where(half.float().abs() < d.abs(), (half.view(torch.int16) + 1).view(torch.float16), half)
