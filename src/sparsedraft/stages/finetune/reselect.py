"""Mask re-selection (RigL, Evci et al. 2020): during training the mask moves and the pattern stays.

Drop the surviving weights of least |w|, grow as many pruned ones of largest |gradient|, and start those at 0. Weights
are swapped one for one inside a group: the M inputs of N:M, or the whole matrix for `unstructured`. So every group
keeps as many weights as it had.

A grown weight has a gradient that is not 0, and the next optimizer step uses it. That makes a zero at the end unlikely;
the claim is right in any case, because `stage.py` counts the zeros of the final weights.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.stages.finetune.adamw import MaskedAdamW
from sparsedraft.stages.finetune.sharding import local, part, whole

UNTIL = 0.75  # share of the run after which the mask stays: grown weights need time to grow


@dataclass(frozen=True)
class Schedule:
    """Every `every` steps (0: never) until UNTIL of `steps`, a share that starts at `share` and falls to 0."""

    every: int
    share: float
    steps: int

    def at(self, step: int) -> float:
        """The share of the surviving weights to move at `step` (from 1); 0: none. RigL's cosine, α/2 (1 + cos πt/T)."""
        if not self.every or step % self.every or step > UNTIL * self.steps:
            return 0.0
        return self.share / 2 * (1 + math.cos(math.pi * step / (UNTIL * self.steps)))


def swapped_mask(weight: Tensor, gradient: Tensor, keep: Tensor, pattern: Pattern, share: float) -> Tensor:
    """The keep-mask (bool, [out, in], as `keep`) after round(share · kept) swaps, or as many as there can be.

    `gradient` is dense: that of pruned weights, too. Unstructured: the smallest surviving |w| go and the largest pruned
    |gradient| come. N:M: a swap pairs the j-th smallest |w| of a group with its j-th largest pruned |gradient|; of all
    such pairs, those with the smallest |w| are swapped. Pruned weights whose gradient is 0 are never grown. Ties go to
    the earlier entry.
    """
    w, g = weight.float().abs().masked_fill(~keep, torch.inf), gradient.float().abs().masked_fill(keep, 0)
    budget = round(share * int(keep.sum()))
    if pattern.m:
        return _swapped_in_groups(w, g, keep, pattern.m, budget)
    few = min(budget, int(keep.sum()), int((g > 0).sum())) / keep.numel()
    return keep & keep_mask(Pattern(), w, few) | ~keep_mask(Pattern(), -g, few)  # (keep: all but the lowest)


def _swapped_in_groups(w: Tensor, g: Tensor, keep: Tensor, size: int, budget: int) -> Tensor:
    drops, drop = w.reshape(-1, size).sort(dim=-1, stable=True)
    grows, grow = g.reshape(-1, size).sort(dim=-1, descending=True, stable=True)
    possible = (drops < torch.inf) & (grows > 0)
    order = drops.masked_fill(~possible, torch.inf).flatten().argsort(stable=True)[: min(budget, int(possible.sum()))]
    swapped = torch.zeros_like(possible).view(-1).index_fill_(0, order, True).view_as(possible)
    new = keep.reshape(-1, size).clone()
    new.scatter_(-1, drop, new.gather(-1, drop) & ~swapped)
    new.scatter_(-1, grow, new.gather(-1, grow) | swapped)
    return new.reshape(keep.shape)


@torch.no_grad()
def reselect(model: nn.Module, patterns: Mapping[str, Pattern], optimizer: MaskedAdamW, share: float) -> int:
    """Move every mask of `optimizer` by the dense gradients that the weights hold; return how many were swapped.

    Call it between the backward passes of a step and its optimizer step. Weights and moments become 0 wherever the new
    mask prunes. Where parameters are sharded (FSDP2), every process must call it: the choice needs the whole weight,
    gradient and mask of a linear, which are gathered one linear at a time.
    """
    count = 0
    for name, linear in decoder_linears(model).items():
        weight = linear.weight
        if weight not in optimizer.keep or weight.grad is None:
            continue
        before = whole(optimizer.keep[weight].byte(), weight).bool()
        values, gradient = (whole(local(tensor), weight) for tensor in (weight.detach(), weight.grad))
        after = swapped_mask(values, gradient, before, patterns.get(name, Pattern()), share)
        count += int((after & ~before).sum())
        optimizer.hold(weight, part(after, weight))
    return count
