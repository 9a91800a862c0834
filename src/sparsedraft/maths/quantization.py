"""Rounding of weights to integers: int8 with one scale for each row, int4 with one for each group of inputs.

weight ≈ code · scale, and 0 stays exactly 0. Pruning, fine-tuning and packing round by these rules.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.pattern import Pattern

GROUP = 32  # stored values that share an int4 scale
GROUPS = (32, 64, 128, 256)  # inputs that may share one
LOWEST, HIGHEST = -8, 7  # int4 codes
# Codes that the search gives a group's largest weight: beyond the range it is clipped and the others gain resolution;
# the sign of the scale decides which end of the range it meets. No halves: which way they go would be chance.
TRIED = (-7, -7.6, -8, -8.6, -9.2, -10, -11.5, 6, 7, 7.6, 8.3, 9.6)
CHUNK = 1 << 18  # weights that a CPU searches at once: what lies in a cache is faster than memory
LARGEST_SCALE = torch.finfo(torch.float16).max
LARGEST = LARGEST_SCALE * -LOWEST  # the largest |w| that int4 holds
LEAST = 2.0**-24  # the smallest float16: a group below it is rounded to zeros


@dataclass(frozen=True)
class Codes:
    """A matrix in int4: `codes` int8 [out, in] from -8 to 7, `scale` float16 [out, ⌈in / group⌉].

    Each `group` consecutive inputs of a row share a scale, which may be negative and is never 0; the last group may be
    short.
    """

    codes: Tensor
    scale: Tensor
    group: int

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """code · scale [out, in], computed in float32."""
        scale = self.scale.float().repeat_interleave(self.group, dim=1)[:, : self.codes.shape[1]]
        return scale.mul_(self.codes).to(dtype)


def group_of(pattern: Pattern) -> int:
    """Inputs that share an int4 scale: so many that 32 values are stored, where that is one of GROUPS, else 32."""
    if not pattern.m or GROUP % pattern.n:
        return GROUP
    group = GROUP // pattern.n * pattern.m
    return group if group in GROUPS else GROUP


def int8_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(codes int8 [out, in] from -127 to 127, scale float32 [out]) of `weight` [out, in].

    The scale is max|w| / 127 of the row, so that nothing is clipped; 1 for a row of zeros.
    """
    exact = weight.float()
    scale = exact.abs().amax(1, keepdim=True) / 127
    scale = torch.where(scale == 0, 1, scale)
    return (exact / scale).round().clamp(-127, 127).to(torch.int8), scale[:, 0]


def int4_codes(weight: Tensor, group: int = GROUP, importance: Tensor | None = None) -> Codes:
    """`weight` [out, in] in int4, each group's scale by `least_squares_scale` with `importance` [in] (default: 1).

    UserError as `check_range`.
    """
    check_range(weight)
    rows, columns = weight.shape
    count = -(-columns // group)
    padding = count * group - columns
    codes = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
    scales = torch.empty(rows, count, dtype=torch.float16, device=weight.device)
    step = max(1, (CHUNK if weight.device.type == "cpu" else 64 * CHUNK) // columns)
    if importance is not None:
        importance = F.pad(importance.float(), (0, padding)).view(count, group).T.repeat(1, step)
    for start in range(0, rows, step):
        part = weight.detach()[start : start + step]
        W = F.pad(part.float(), (0, padding)).view(-1, group).T.contiguous()  # a group is a column: sums are fast
        scale = least_squares_scale(W, None if importance is None else importance[:, : W.shape[1]])
        scales[start : start + step] = scale.view(-1, count)
        q = nearest_codes(W, scale).to(torch.int8)
        codes[start : start + step] = q.T.reshape(len(part), -1)[:, :columns]
    return Codes(codes, scales, group)


def check_range(weight: Tensor) -> None:
    """Raise UserError for a weight that no code of int4 times a float16 reaches."""
    largest = float(weight.detach().abs().amax().float())
    if largest > LARGEST:
        raise UserError(f"a weight of {largest:g} does not fit int4, which holds up to {LARGEST:,.0f}: choose bf16.")


def least_squares_scale(W: Tensor, importance: Tensor | None = None) -> Tensor:
    """The int4 scale of each column of `W` [group, n]: nearly the least Σ importance · (w - scale · code)².

    `importance` has the shape of W, or one that broadcasts to it. For each code of TRIED the other codes follow, and
    the best scale for these codes is known: Σ h w q / Σ h q². Of these scales, rounded to float16, the best is taken:
    [n] in W's dtype, finite and not 0; 1 for a column of zeros.
    """
    low, high = W.amin(0), W.amax(0)
    largest = torch.where(high >= -low, high, low)
    largest = torch.where(largest.abs() < LEAST, 1, largest)
    weighted = W if importance is None else W * importance
    best, scale = torch.zeros_like(largest), torch.ones_like(largest)
    q, product = torch.empty_like(W), torch.empty_like(W)
    for code in TRIED:
        torch.mul(W, code / largest, out=q).round_().clamp_(LOWEST, HIGHEST)
        along = torch.mul(q, weighted, out=product).sum(0)
        torch.mul(q, q, out=product)
        norm = (product if importance is None else product.mul_(importance)).sum(0)
        candidate = (along / norm).clamp(-LARGEST_SCALE, LARGEST_SCALE).half().to(W.dtype)
        gain = candidate * (2 * along - candidate * norm)  # Σ h w² - Σ h (w - s q)²
        better = gain > best  # false for NaN: of nothing but zeros
        best, scale = torch.where(better, gain, best), torch.where(better, candidate, scale)
    return scale


def nearest_codes(W: Tensor, scale: Tensor) -> Tensor:
    """The int4 codes, in W's dtype, whose products with `scale` are nearest to `W`."""
    return (W / scale).round_().clamp_(LOWEST, HIGHEST)


def snap(weight: Tensor, scheme: str, group: int = GROUP) -> Tensor:
    """`weight` [out, in] rounded to what `scheme` (int8, int4) can express; same dtype. `group` is int4's."""
    if scheme == "int4":
        return int4_codes(weight, group).weight(weight.dtype)
    codes, scale = int8_codes(weight)
    return (codes * scale[:, None]).to(weight.dtype)
