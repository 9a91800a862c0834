"""Symmetric rounding of weights to integers: int8 with one scale per output row, int4 with one per GROUP inputs.

The scale is max|w| / 127 (or 7), so nothing is ever clipped and 0 stays exactly 0. Quantisation-aware fine-tuning and
packing both round by this rule.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 32  # consecutive inputs that share an int4 scale
LEVELS = {"int8": 127, "int4": 7}  # the largest code; the smallest is its negative


def codes(weight: Tensor, scheme: str) -> tuple[Tensor, Tensor]:
    """(codes int8 [out, groups, size], scales float32 [out, groups, 1]) of `weight` [out, in]; weight ≈ codes · scales.

    int8: one group, the row. int4: groups of GROUP, the last filled up with zeros. A group of zeros has scale 1.
    """
    width = weight.shape[1] if scheme == "int8" else GROUP
    grouped = F.pad(weight.float(), (0, -weight.shape[1] % width)).unflatten(1, (-1, width))
    scales = grouped.abs().amax(-1, keepdim=True) / LEVELS[scheme]
    scales = torch.where(scales == 0, 1, scales)
    return (grouped / scales).round().clamp(-LEVELS[scheme], LEVELS[scheme]).to(torch.int8), scales


def snap(weight: Tensor, scheme: str) -> Tensor:
    """`weight` [out, in] rounded to the nearest values that codes can express, codes · scales; same dtype."""
    q, scales = codes(weight, scheme)
    return (q * scales).flatten(1)[:, : weight.shape[1]].to(weight.dtype)
