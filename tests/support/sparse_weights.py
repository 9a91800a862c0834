"""Weights with zeros that a layout of the kernels can hold."""

import torch

from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern


def sparse(weight: torch.Tensor, layout: str, n: int, density: float, generator: torch.Generator) -> torch.Tensor:
    """`weight` with zeros that the layout can hold: full groups, groups with fewer, and rows of nothing else."""
    if layout in ("2:4", "N:8"):
        pattern = Pattern(2, 4) if layout == "2:4" else Pattern(n, 8)
        weight = weight * keep_mask(pattern, weight.abs(), 1 - n / pattern.m)
        weight = weight * (
            torch.rand(weight.shape[0], weight.shape[1] // pattern.m, 1, generator=generator) > 0.1
        ).expand(-1, -1, pattern.m).reshape(weight.shape)
    elif layout != "dense":
        weight = weight * (torch.rand(weight.shape, generator=generator) < density)
    return weight * (torch.rand(weight.shape[0], 1, generator=generator) > 0.1)
