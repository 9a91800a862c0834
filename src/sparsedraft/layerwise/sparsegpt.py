"""SparseGPT (Frantar & Alistarh 2023): one-shot pruning that lets the weights that are left make up for those that go.

Letters of the paper: W [out, in]; H = 2/n Σ x xᵀ [in, in], the Hessian of the layer-wise error ‖WX - ŴX‖², the same for
every row of W; M the mask, E the errors. Hinv is the upper Cholesky factor of H⁻¹, which Algorithm 1 writes as H⁻¹: its
row j holds what OBS needs once the columns left of j are done. W1, M1, Err1 and Hinv1 are the parts of one block.
"""

import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern

DAMPING = 0.01  # of H's mean diagonal, as in the paper
TILE = 1024  # columns of H that are added at once: only tiles on and above the diagonal are computed


class Hessian:
    """Running mean of 2 x xᵀ over calibration tokens, float32, [columns, columns]; `finish` before H is read."""

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.H = torch.zeros(columns, columns, dtype=torch.float32, device=device)
        self.tokens = 0
        self._factor: Tensor | None = None

    @classmethod
    def of(cls, H: Tensor) -> "Hessian":
        """A finished Hessian with this (symmetric) matrix."""
        hessian = cls(0)
        hessian.H = H
        return hessian

    def add(self, x: Tensor) -> None:
        """Add activations [..., columns]."""
        x = x.reshape(-1, x.shape[-1]).float()
        before, self.tokens = self.tokens, self.tokens + len(x)
        for start in range(0, len(self.H), TILE):  # H is symmetric: the upper part says all
            end = min(start + TILE, len(self.H))
            part = self.H[start:end, start:]
            part.addmm_(x[:, start:end].T, x[:, start:], beta=before / self.tokens, alpha=2 / self.tokens)

    @property
    def finite(self) -> bool:
        """Whether no activation was NaN or infinite (its square is on the diagonal)."""
        return bool(torch.isfinite(self.H.diagonal()).all())

    def finish(self) -> None:
        """Fill in the lower part from the upper."""
        for start in range(0, len(self.H), TILE):
            end = min(start + TILE, len(self.H))
            tile = self.H[start:end, start:end]
            tile.copy_(tile.triu() + tile.triu(1).T)  # products are symmetric up to rounding only
            self.H[end:, start:end] = self.H[start:end, end:].T

    def norms(self) -> Tensor:
        """√mean x² of each input, [columns]: ‖X‖₂ up to a constant (Wanda's)."""
        return (self.H.diagonal() / 2).sqrt()

    def dead(self) -> Tensor:
        """Inputs that were always 0, bool [columns]."""
        return self.H.diagonal() == 0

    def factor(self) -> Tensor:
        """The upper Cholesky factor of the damped inverse, computed once: linears that share an input share it."""
        if self._factor is None:
            self._factor = inverse_factor(self.H, DAMPING)
        return self._factor

    def release(self) -> None:
        """Give the factor's memory back."""
        self._factor = None


def inverse_factor(H: Tensor, damping: float) -> Tensor:
    """Upper triangular U with UᵀU = (H + λI)⁻¹, λ = `damping` times H's mean diagonal; ten times that where it must be.

    With the order of rows and columns reversed, the Cholesky factor L of H gives H = RRᵀ for an upper triangular R,
    and U = R⁻¹: one factorisation and one triangular inverse, and never H⁻¹ itself. Dead inputs count as 1 on the
    diagonal. Memory: two matrices beside H. Raises UserError if H is too singular at any damping.
    """
    diagonal = H.diagonal()
    diagonal = torch.where(diagonal == 0, 1, diagonal)
    mean = diagonal.mean()
    for _ in range(6):
        reversed_H = H.flip(0, 1)
        reversed_H.diagonal().copy_((diagonal + damping * mean).flip(0))
        lower, failed = torch.linalg.cholesky_ex(reversed_H)
        del reversed_H
        if not failed:
            upper = invert_lower_(lower).flip(0, 1)
            if bool(torch.isfinite(upper.diagonal()).all()):
                return upper
        damping *= 10  # a Hessian of few tokens can be too singular for float32
    raise UserError("the Hessian cannot be inverted at any damping: give more calibration tokens.")


def invert_lower_(L: Tensor, base: int = 256) -> Tensor:
    """The inverse of a lower triangular matrix, in place: n³/3 operations, nearly all in matrix products.

    [[A, 0], [B, C]]⁻¹ = [[A⁻¹, 0], [-C⁻¹ B A⁻¹, C⁻¹]], by halves down to `base` columns.
    """
    n = len(L)
    if n <= base:
        eye = torch.eye(n, dtype=L.dtype, device=L.device)
        L.copy_(torch.linalg.solve_triangular(L, eye, upper=False))
        return L
    half = n // 2
    invert_lower_(L[:half, :half], base)
    invert_lower_(L[half:, half:], base)
    L[half:, :half] = -(L[half:, half:] @ (L[half:, :half] @ L[:half, :half]))
    return L


def prune(
    weight: Tensor,
    hessian: Hessian,
    pattern: Pattern,
    sparsity: float,
    zeros: Tensor | None = None,
    *,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """(new weight, keep-mask) of one linear: `weight` [out, in] float; arithmetic in H's dtype. Algorithm 1.

    The mask is chosen inside each block of `block` columns (the paper's B), with the lowest w² / [H⁻¹]_cc²:
    unstructured, the block's share of the matrix's round(sparsity · entries) zeros; N:M, at the start of each group of
    M columns. The error of every pruned weight is carried into the columns to its right.
    Inputs that are always 0 (dead columns) get weight 0. `weight` and H are finite; UserError if H has no inverse.

    `zeros` (bool, like `weight`) are pruned whatever error is carried into them. They count towards the pattern, and a
    block that has more of them than its share prunes no others: what is left to prune is shared out over the rest.
    """
    Hinv = hessian.factor()
    W = weight.to(Hinv.dtype, copy=True)
    W[:, hessian.dead()] = 0
    M = torch.ones_like(W, dtype=torch.bool)
    free = torch.ones_like(M) if zeros is None else ~zeros
    B = max(block // pattern.m, 1) * pattern.m if pattern.m else block  # no group straddles two blocks
    counts = [] if pattern.m else _zeros_by_block(free, sparsity, B)
    for number, i in enumerate(range(0, W.shape[1], B)):
        end = min(i + B, W.shape[1])
        Hinv1, free1 = Hinv[i:end, i:end], free[:, i:end]
        if pattern.m:
            M1 = torch.ones_like(free1.T, memory_format=torch.contiguous_format)
        else:
            scores = _scores(W[:, i:end], Hinv1.diagonal(), free1)
            M1 = keep_mask(pattern, scores, counts[number] / scores.numel()).T.contiguous()
        W1 = W[:, i:end].T.contiguous()  # a column of W is a row here: contiguous, as the loop wants it
        Err1 = _sweep(W1, M1, Hinv1, free1, pattern, sparsity)
        M[:, i:end] = M1.T
        W[:, i:end] = (W1 * M1).T
        W[:, end:].addmm_(Err1.T, Hinv[i:end, end:], alpha=-1)  # W_(i+B): -= E · H⁻¹_i:(i+B),(i+B):
    return W.to(weight.dtype), M


def _sweep(W1: Tensor, M1: Tensor, Hinv1: Tensor, free1: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """Prune one block column by column, in place; its errors E [columns, out].

    W1 and the mask M1 are [columns, out], `free1` (what was not pruned before) is [out, columns]. M1 is given, but for
    N:M, where each group is chosen when the sweep reaches it.
    """
    d, m = Hinv1.diagonal(), pattern.m
    Err1 = torch.zeros_like(W1)
    for j in range(len(W1)):
        if m and j % m == 0:
            free_group = free1[:, j : j + m]
            scores = _scores(W1[j : j + m].T, d[j : j + m], free_group)
            M1[j : j + m] = (keep_mask(pattern, scores, sparsity) & free_group).T
        Err1[j] = W1[j] * ~M1[j] / d[j]  # E_j = (1 - M_j) · W_j / [H⁻¹]_jj
        W1[j + 1 :].addr_(Hinv1[j, j + 1 :], Err1[j], alpha=-1)  # W_j: -= E_j · H⁻¹_j,j:
    return Err1


def _scores(W: Tensor, d: Tensor, free: Tensor) -> Tensor:
    """w_c² / [H⁻¹]_cc² [out, columns], with d the diagonal of H⁻¹; what was pruned before is below all others."""
    return ((W / d) ** 2).masked_fill(~free, -1)


def _zeros_by_block(free: Tensor, sparsity: float, block: int) -> list[int]:
    """How many entries of each block of columns are pruned, those pruned before included.

    Rounding the running total keeps the count of the whole matrix exact.
    """
    entries, open_ = free.numel(), int(free.sum())
    share = max(0.0, sparsity - (1 - sparsity) * (entries - open_) / max(1, open_))  # of the free entries
    counts, before = [], 0
    for part in free.split(block, dim=1):
        after = before + int(part.sum())
        counts.append(part.numel() - (after - before) + round(share * after) - round(share * before))
        before = after
    return counts


def relative_error(before: Tensor, after: Tensor, H: Tensor) -> float:
    """‖(W-Ŵ)X‖² / ‖WX‖² by way of the Hessian: tr(D H Dᵀ) / tr(W H Wᵀ); 0 for a weight that never mattered."""
    H = H.float()

    def energy(weight: Tensor) -> float:
        W, total = weight.float(), 0.0
        for start in range(0, len(H), TILE // 2):  # the part right of the diagonal counts twice: half the work
            end = min(start + TILE // 2, len(H))
            part = W[:, start:end]
            total += float((part @ H[start:end, start:end] * part).sum())
            total += 2 * float((part @ H[start:end, end:] * W[:, end:]).sum())
        return total

    total = energy(before)
    return energy(before - after) / total if total > 0 else 0.0
