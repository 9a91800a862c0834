"""SparseGPT (Frantar & Alistarh 2023): one-shot pruning that lets the weights that are left make up for those that go.

Notation of the paper: W [out, in]; H = 2/n Σ x xᵀ [in, in], the Hessian of the layer-wise error ‖WX - ŴX‖² for every
row of W alike; Hinv the upper Cholesky factor of H⁻¹, whose row i holds what OBS needs once the columns left of i
are done: [H⁻¹]_ii = Hinv[i, i]².
"""

import torch
from torch import Tensor

from sparsedraft.errors import UserError
from sparsedraft.pattern import Pattern


class Hessian:
    """Running mean of 2 x xᵀ over calibration tokens, float32."""

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.H = torch.zeros(columns, columns, dtype=torch.float32, device=device)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Add activations [..., columns]."""
        x = x.reshape(-1, x.shape[-1]).float()
        self.H *= self.tokens / (self.tokens + len(x))
        self.tokens += len(x)
        self.H.addmm_(x.T, x, alpha=2 / self.tokens)

    def norms(self) -> Tensor:
        """√mean x² of each input, [columns]: ‖X‖₂ up to a constant (Wanda's)."""
        return (self.H.diagonal() / 2).sqrt()


def inverse_factor(H: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of (H + λI)⁻¹, λ = `damping` times H's mean diagonal; ten times that where it must be.

    Raises UserError if H is too singular at any damping.
    """
    mean = H.diagonal().mean()
    for _ in range(6):
        damped = H + damping * mean * torch.eye(len(H), dtype=H.dtype, device=H.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damping *= 10  # a Hessian of few tokens can be too singular for float32
    raise UserError("the Hessian cannot be inverted at any damping: give more calibration tokens.")


def prune(
    weight: Tensor, H: Tensor, pattern: Pattern, sparsity: float, *, damping: float = 0.01, block: int = 128
) -> tuple[Tensor, Tensor]:
    """(new weight, keep-mask) of one linear: `weight` [out, in], `H` [in, in]; arithmetic in H's dtype.

    The mask is chosen inside each block of `block` columns, with the lowest w² / [H⁻¹]_cc² (unstructured: the block's
    share of the matrix's round(sparsity · entries) zeros; N:M: at the start of each group of M columns). The error of
    every pruned weight is carried into the columns to its right.
    Inputs that are always 0 (dead columns) get weight 0. `weight` and `H` are finite; UserError if H has no inverse.
    """
    W, H = weight.to(H.dtype).clone(), H.clone()
    rows, columns = W.shape
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    Hinv = inverse_factor(H, damping)
    kept = torch.ones_like(W, dtype=torch.bool)
    if pattern.m:
        block = max(block // pattern.m, 1) * pattern.m  # no group straddles two blocks

    for start in range(0, columns, block):
        end = min(start + block, columns)
        H1 = Hinv[start:end, start:end]
        diagonal = H1.diagonal()
        W1 = W[:, start:end].T.contiguous()  # a column of W is a row here: contiguous, as the loop wants it
        keep, error = torch.ones_like(W1, dtype=torch.bool), torch.zeros_like(W1)
        if not pattern.m:  # rounding the running total keeps the whole matrix's count exact
            zeros = round(sparsity * rows * end) - round(sparsity * rows * start)
            keep = pattern.keep((W[:, start:end] / diagonal) ** 2, zeros / W1.numel()).T.contiguous()
        for i in range(end - start):
            if pattern.m and i % pattern.m == 0:
                group = slice(i, i + pattern.m)
                keep[group] = pattern.keep((W1[group].T / diagonal[group]) ** 2, sparsity).T
            e = W1[i] * ~keep[i] / diagonal[i]
            W1[i + 1 :].addr_(H1[i, i + 1 :], e, alpha=-1)
            error[i] = e
        kept[:, start:end] = keep.T
        W[:, start:end] = (W1 * keep).T
        W[:, end:].addmm_(error.T, Hinv[start:end, end:], alpha=-1)
    return W.to(weight.dtype), kept
