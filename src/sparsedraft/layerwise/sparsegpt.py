"""SparseGPT (Frantar & Alistarh 2023): one-shot pruning that lets the weights that are left make up for those that go.

Letters of the paper: W [out, in]; H = 2/n Σ x xᵀ [in, in], the Hessian of the layer-wise error ‖WX - ŴX‖², the same for
every row of W; M the mask, E the errors. Hinv is the upper Cholesky factor of H⁻¹, which Algorithm 1 writes as H⁻¹: its
row j holds what OBS needs once the columns left of j are done. W1, M1, Err1 and Hinv1 are the parts of one block.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import Codes, check_range, least_squares_scale, nearest_codes

DAMPING = 0.01  # of H's mean diagonal, as in the paper
ROUNDING_DAMPING = 0.1  # of sweeps that round alone: with less, they fit the calibration text at others' cost
UNSTRUCTURED = Pattern()
TILE = 1024  # columns of H that are added at once: only tiles on and above the diagonal are computed


class Hessian:
    """Running mean of 2 x xᵀ over calibration tokens, float32, [columns, columns]; `finish` before H is read."""

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.H = torch.zeros(columns, columns, dtype=torch.float32, device=device)
        self.tokens = 0
        self._factor: tuple[tuple[int, float], Tensor] | None = None  # of the order by groups, damped so

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

    def importance(self, damping: float) -> Tensor:
        """What an error of a weight costs by its input, [columns]: the diagonal, damped as the factor is."""
        return self.H.diagonal() + damping * self.H.diagonal().mean()

    def dead(self) -> Tensor:
        """Inputs that were always 0, bool [columns]."""
        return self.H.diagonal() == 0

    def order(self, group: int) -> Tensor:
        """The columns in the order of a sweep that rounds, int64 [columns]: the most important `group` comes first.

        What comes first has the most columns to make up for its error. Inside a group nothing moves; a short last group
        stays the last. `group` 0: as they are.
        """
        columns = torch.arange(len(self.H), device=self.H.device)
        if not group:
            return columns
        full = len(columns) // group * group
        weight = self.H.diagonal()[:full].view(-1, group).sum(1)
        first = columns[:full].view(-1, group)[weight.argsort(descending=True, stable=True)]
        return torch.cat([first.flatten(), columns[full:]])

    def factor(self, group: int = 0, damping: float = DAMPING) -> Tensor:
        """The upper Cholesky factor of the damped inverse, columns in the `order` of `group`.

        It is computed once: linears that share an input share it.
        """
        if self._factor is None or self._factor[0] != (group, damping):
            self._factor = None  # its memory is needed
            inverse = inverse_factor(self.H, damping, self.order(group) if group else None)
            self._factor = (group, damping), inverse
        return self._factor[1]

    def release(self) -> None:
        """Give the factor's memory back."""
        self._factor = None


def inverse_factor(H: Tensor, damping: float, order: Tensor | None = None) -> Tensor:
    """Upper triangular U with UᵀU = (H + λI)⁻¹, λ = `damping` times H's mean diagonal; ten times that where it must be.

    `order` (default: as it is) is how H's rows and columns are put first.

    With the order of rows and columns reversed, the Cholesky factor L of H gives H = RRᵀ for an upper triangular R,
    and U = R⁻¹: one factorisation and one triangular inverse, and never H⁻¹ itself. Dead inputs count as 1 on the
    diagonal. Memory: two matrices beside H. Raises UserError if H is too singular at any damping.
    """
    diagonal = H.diagonal() if order is None else H.diagonal()[order]
    diagonal = torch.where(diagonal == 0, 1, diagonal)
    mean = diagonal.mean()
    for _ in range(6):
        reversed_H = H.flip(0, 1) if order is None else H[order.flip(0)[:, None], order.flip(0)]
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


@dataclass(frozen=True)
class Goal:
    """What a sweep leaves of a weight: its pattern, and its numbers."""

    pattern: Pattern = UNSTRUCTURED
    sparsity: float = 0.0  # 0: nothing is pruned but what was
    group: int = 0  # inputs that share an int4 scale; 0: the weights are not rounded

    @property
    def unit(self) -> int:
        """Columns that stay together: whole groups of N:M, and of one scale."""
        return math.lcm(self.pattern.m or 1, self.group or 1)

    @property
    def damping(self) -> float:
        """Share of the Hessian's mean diagonal that is added to its diagonal."""
        return ROUNDING_DAMPING if self.group and not self.sparsity else DAMPING

    @property
    def ordered(self) -> int:
        """The columns that are moved together to the order of the sweep; 0: they stay as they are."""
        return self.unit if self.group else 0

    def block(self, least: int) -> int:
        """Columns that are swept together: about `least`, and no group straddles two blocks."""
        return max(least // self.unit, 1) * self.unit


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
    W, M, _ = _sweep(weight, hessian, Goal(pattern, sparsity), zeros, block)
    return W.to(weight.dtype), M


def prune_and_round(
    weight: Tensor, hessian: Hessian, goal: Goal, zeros: Tensor | None = None, *, block: int = 128
) -> tuple[Codes, Tensor]:
    """(int4 codes, keep-mask): `prune`, and each kept weight is rounded as its column is passed (§3.5 of the paper).

    Both errors are carried into the columns that come later, the most important groups first (`Hessian.order`). A
    group's scale is taken at its first column, from the weights as they are by then. Where nothing is pruned this is
    GPTQ (Frantar et al. 2023).
    """
    check_range(weight)
    order = hessian.order(goal.ordered)
    W, M, scales = _sweep(weight[:, order], hessian, goal, None if zeros is None else zeros[:, order], block)
    if not bool(torch.isfinite(W).all()):
        raise UserError("rounding gave NaN or infinity: give more calibration tokens, or try float32.")
    back = order.argsort()
    scale = torch.cat(scales)[back[:: goal.group] // goal.group].T.contiguous()  # [out, groups]
    each = scale.repeat_interleave(goal.group, dim=1)[:, : W.shape[1]]
    return Codes(nearest_codes(W[:, back], each).to(torch.int8), scale.half(), goal.group), M[:, back]


def _sweep(
    weight: Tensor, hessian: Hessian, goal: Goal, zeros: Tensor | None, block: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(new weight, keep-mask, the scale [1, out] of each group), columns in the goal's order; arithmetic in H's dtype.

    `weight` and `zeros` are in that order, too.
    """
    Hinv, order = hessian.factor(goal.ordered, goal.damping), hessian.order(goal.ordered)
    W = weight.to(Hinv.dtype, copy=True)
    W[:, hessian.dead()[order]] = 0
    M = torch.ones_like(W, dtype=torch.bool)
    free = torch.ones_like(M) if zeros is None else ~zeros
    importance = hessian.importance(goal.damping)[order]
    pattern, B = goal.pattern, goal.block(block)
    counts = [] if pattern.m else _zeros_by_block(free, goal.sparsity, B)
    scales = []
    for number, i in enumerate(range(0, W.shape[1], B)):
        end = min(i + B, W.shape[1])
        Hinv1, free1 = Hinv[i:end, i:end], free[:, i:end]
        if pattern.m:
            M1 = torch.ones_like(free1.T, memory_format=torch.contiguous_format)
        else:
            scores = _scores(W[:, i:end], Hinv1.diagonal(), free1)
            M1 = keep_mask(pattern, scores, counts[number] / scores.numel()).T.contiguous()
        W1 = W[:, i:end].T.contiguous()  # a column of W is a row here: contiguous, as the loop wants it
        Err1, scales1 = _sweep_block(W1, M1, Hinv1, free1, goal, importance[i:end])
        scales += scales1
        M[:, i:end] = M1.T
        W[:, i:end] = W1.T
        W[:, end:].addmm_(Err1.T, Hinv[i:end, end:], alpha=-1)  # W_(i+B): -= E · H⁻¹_i:(i+B),(i+B):
    return W, M, scales


def _sweep_block(
    W1: Tensor, M1: Tensor, Hinv1: Tensor, free1: Tensor, goal: Goal, importance1: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Prune and round one block column by column, in place; its errors E [columns, out], its scales [1, out] each.

    W1 and the mask M1 are [columns, out], `free1` (what was not pruned before) is [out, columns]. M1 is given, but for
    N:M, where each group is chosen when the sweep reaches it.
    """
    d, m, group = Hinv1.diagonal(), goal.pattern.m, goal.group
    Err1 = torch.zeros_like(W1)
    scales: list[Tensor] = []

    def choose(columns: slice) -> None:
        scores = _scores(W1[columns].T, d[columns], free1[:, columns])
        M1[columns] = (keep_mask(goal.pattern, scores, goal.sparsity) & free1[:, columns]).T

    for j in range(len(W1)):
        if group and j % group == 0:
            columns = slice(j, min(j + group, len(W1)))
            if m:  # an estimate for the scale: each M columns are chosen again when it is their turn
                choose(slice(-(-j // m) * m, -(-columns.stop // m) * m))
            scales.append(least_squares_scale(W1[columns] * M1[columns], importance1[columns, None])[None])
        if m and j % m == 0:
            choose(slice(j, j + m))
        kept = W1[j] * M1[j]
        if group:
            kept = nearest_codes(kept, scales[-1][0]) * scales[-1][0]
        Err1[j] = (W1[j] - kept) / d[j]  # E_j = (W_j - Ŵ_j) / [H⁻¹]_jj, with Ŵ_j = 0 where M_j is
        W1[j + 1 :].addr_(Hinv1[j, j + 1 :], Err1[j], alpha=-1)  # W_j: -= E_j · H⁻¹_j,j:
        W1[j] = kept
    return Err1, scales


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
