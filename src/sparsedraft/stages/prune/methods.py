"""The pruning methods by name, with one signature: (weight, Hessian, pattern, sparsity, zeros) -> (weight, keep-mask).

`zeros` (bool, like the weight, or None) were pruned before: they stay 0 and count towards the sparsity.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsedraft.layerwise import sparsegpt
from sparsedraft.layerwise.sparsegpt import Hessian
from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.stages.prune.alps import alps


def wanda(
    weight: Tensor, hessian: Hessian, pattern: Pattern, sparsity: float, zeros: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Wanda (Sun et al. 2024): prune the lowest |w| · ‖x‖₂ of each output row; the other weights stay as they are."""
    scores = _last(weight.float().abs() * hessian.norms(), zeros)
    if pattern.m:
        keep = keep_mask(pattern, scores, sparsity)
    else:  # row by row: the comparison group of the paper
        order = scores.argsort(dim=1, stable=True)[:, : round(sparsity * scores.shape[1])]
        keep = torch.ones_like(scores, dtype=torch.bool).scatter_(1, order, False)
    keep &= scores >= 0
    return torch.where(keep, weight, 0), keep


def magnitude(
    weight: Tensor, hessian: Hessian, pattern: Pattern, sparsity: float, zeros: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Prune the smallest |w| of the matrix (or of each group of M); the Hessian has no effect."""
    scores = _last(weight.float().abs(), zeros)
    keep = keep_mask(pattern, scores, sparsity) & (scores >= 0)
    return torch.where(keep, weight, 0), keep


def _last(scores: Tensor, zeros: Tensor | None) -> Tensor:
    """`scores` with what was pruned before below all others."""
    return scores if zeros is None else scores.masked_fill(zeros, -1)


Method = Callable[[Tensor, Hessian, Pattern, float, Tensor | None], tuple[Tensor, Tensor]]
METHODS: dict[str, Method] = {"sparsegpt": sparsegpt.prune, "alps": alps, "wanda": wanda, "magnitude": magnitude}
