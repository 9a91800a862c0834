"""The pruning methods by name, all of one shape: (weight, Hessian, pattern, sparsity) -> (new weight, keep-mask)."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsedraft.pattern import Pattern
from sparsedraft.prune import sparsegpt
from sparsedraft.prune.sparsegpt import Hessian


def wanda(weight: Tensor, hessian: Hessian, pattern: Pattern, sparsity: float) -> tuple[Tensor, Tensor]:
    """Wanda (Sun et al. 2024): prune the lowest |w| · ‖x‖₂ of each output row; the other weights stay as they are."""
    scores = weight.float().abs() * hessian.norms()
    if pattern.m:
        keep = pattern.keep(scores, sparsity)
    else:  # row by row: the comparison group of the paper
        order = scores.argsort(dim=1, stable=True)[:, : round(sparsity * scores.shape[1])]
        keep = torch.ones_like(scores, dtype=torch.bool).scatter_(1, order, False)
    return torch.where(keep, weight, 0), keep


def magnitude(weight: Tensor, hessian: Hessian, pattern: Pattern, sparsity: float) -> tuple[Tensor, Tensor]:
    """Prune the smallest |w| of the matrix (or of each group of M); the Hessian is not looked at."""
    keep = pattern.keep(weight.float().abs(), sparsity)
    return torch.where(keep, weight, 0), keep


Method = Callable[[Tensor, Hessian, Pattern, float], tuple[Tensor, Tensor]]
METHODS: dict[str, Method] = {"sparsegpt": sparsegpt.prune, "wanda": wanda, "magnitude": magnitude}
