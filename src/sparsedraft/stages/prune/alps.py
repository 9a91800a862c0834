"""ALPS (Meng et al. 2024): the mask by operator splitting (ADMM), then the weights that are left solved for.

Over two copies of the weight, X without a mask and D with one, and the multiplier V of X = D:

    X = argmin of tr (W - X)ᵀ G (W - X) / 2 + ‖X - D + V/ρ‖² ρ/2 = (W G + ρ D - V)(G + ρ I)⁻¹
    D = X + V/ρ, without its smallest entries
    V = V + ρ (X - D)

with G the damped Hessian, its columns scaled to a diagonal of 1, so that entries of all columns compare. While ρ is
small the weights that stay make up for those that go and the mask moves; as ρ grows the mask settles. SparseGPT passes
each column once and chooses inside a block of columns; here every choice is made again, over the whole matrix.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.layerwise.sparsegpt import DAMPING, Hessian
from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.stages.prune.refine import refine

FIRST = 0.1  # the first ρ; the last is 1
STAGES = 4  # numbers of ρ, each of which costs a factor of a matrix [in, in]
ROUNDS = 8  # with one ρ; each costs out · in² multiplications or a little more
SAMPLE = 1 << 17  # entries by which a round judges where the smallest of a matrix end: a selection takes far longer


def alps(
    weight: Tensor, hessian: Hessian, pattern: Pattern, sparsity: float, zeros: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(new weight, keep-mask) of `weight` [out, in].

    `zeros` (bool, like the weight) were pruned before: they stay 0 and count towards the sparsity. Raises UserError if
    the Hessian cannot be inverted.
    """
    G = hessian.H.clone()
    G.diagonal().add_(DAMPING * G.diagonal().mean())
    scale = G.diagonal().sqrt().clamp(min=torch.finfo(G.dtype).tiny)  # an H of zeros leaves 0
    G.div_(scale).div_(scale[:, None])
    wanted = weight.to(G.dtype) * scale
    aim = wanted @ G
    D, V, rho = wanted, torch.zeros_like(wanted), FIRST
    sample = _sample(wanted)
    for stage in range(STAGES):
        solve = _solver(G, rho, len(wanted))
        for number in range(ROUNDS):
            X = solve(torch.sub(aim, V).add_(D, alpha=rho))
            Z = torch.add(X, V, alpha=1 / rho)
            last = (stage, number) == (STAGES - 1, ROUNDS - 1)
            keep = _choose(Z, pattern, sparsity, zeros, None if last else sample)
            D = Z * keep
            V.add_(X.sub_(D), alpha=rho)
        rho *= FIRST ** (-1 / (STAGES - 1))
    return refine(weight, (D / scale).to(weight.dtype), keep, hessian.H), keep


def _sample(weight: Tensor) -> Tensor | None:
    """The places of SAMPLE entries, the same in every run; None where there are no more than that."""
    if weight.numel() <= SAMPLE:
        return None
    places = torch.randint(weight.numel(), (SAMPLE,), generator=torch.Generator().manual_seed(0))
    return places.to(weight.device)


def _choose(Z: Tensor, pattern: Pattern, sparsity: float, zeros: Tensor | None, sample: Tensor | None) -> Tensor:
    """The keep-mask of the largest entries; what was pruned before is below all others.

    Unstructured, about so many as `sparsity` says where there is a `sample` of the places, else exactly.
    """
    scores = Z.square()
    if zeros is not None:
        scores.masked_fill_(zeros, -1)
    if pattern.m or sample is None:
        keep = keep_mask(pattern, scores, sparsity)
    else:
        some = scores.flatten()[sample]
        keep = scores > some.kthvalue(max(1, round(sparsity * len(some)))).values
    return keep if zeros is None else keep & ~zeros


def _solver(G: Tensor, rho: float, rows: int) -> Callable[[Tensor], Tensor]:
    """B ↦ B (G + ρI)⁻¹ for B [rows, in]; UserError where there is none.

    The inverse of a wide matrix takes longer than solving for so few rows.
    """
    A = G.clone()
    A.diagonal().add_(rho)
    lower, failed = torch.linalg.cholesky_ex(A)
    if failed:
        raise UserError("the Hessian holds NaN or infinity: give more calibration tokens, or try float32.")
    if rows < len(G):
        return lambda B: torch.cholesky_solve(B.T, lower).T.contiguous()
    inverse = torch.cholesky_inverse(lower)
    return lambda B: B @ inverse
