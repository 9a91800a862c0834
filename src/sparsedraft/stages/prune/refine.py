"""Re-solve the weights that are left, with the mask fixed: the optimum that one-shot pruning only approaches.

For each output row, min over ŵ on the mask of (w - ŵ)ᵀ(H + λI)(w - ŵ): all rows at once by conjugate gradients that
stay on the mask, with the diagonal as preconditioner (the last step of ALPS, Meng et al. 2024).
"""

import torch
from torch import Tensor

from sparsedraft.layerwise.sparsegpt import DAMPING

STEPS = 8  # on SmolLM2 at 2:8 within 3 % of the error that 24 reach


def refine(dense: Tensor, pruned: Tensor, keep: Tensor, H: Tensor, steps: int = STEPS) -> Tensor:
    """`pruned` [out, in] with the weights of `keep` changed so that the layer-wise error against `dense` is least.

    `H` [in, in] is symmetric and undamped; the damping is SparseGPT's. Each of the `steps` costs out · in²
    multiplications; a row that has converged stays as it is. The error of the damped problem never grows.
    """
    W, target = pruned.to(H.dtype).clone(), dense.to(H.dtype)
    damping = DAMPING * H.diagonal().mean()
    scale = 1 / (H.diagonal() + damping).clamp(min=torch.finfo(H.dtype).tiny)

    def curved(D: Tensor) -> Tensor:
        return torch.addmm(damping * D, D, H)

    residual = curved(target - W) * keep
    step = scaled = residual * scale
    power = (residual * scaled).sum(1, keepdim=True)
    for _ in range(steps):
        along = curved(step) * keep
        curvature = (step * along).sum(1, keepdim=True)
        size = torch.where(curvature > 0, power / curvature, 0)
        W += size * step
        residual = residual - size * along
        scaled = residual * scale
        fresh = (residual * scaled).sum(1, keepdim=True)
        step = scaled + torch.where(power > 0, fresh / power, 0) * step
        power = fresh
    return (W * keep).to(pruned.dtype)
