"""Masks of a sparsity pattern: choosing from scores which weights to keep, proving that a weight obeys it, and bits."""

import numpy as np
import torch
from torch import Tensor

from sparsedraft.maths.pattern import Pattern


def keep_mask(pattern: Pattern, scores: Tensor, sparsity: float) -> Tensor:
    """Keep-mask (bool [rows, columns]) that prunes the entries with the lowest `scores`.

    Unstructured: exactly round(sparsity · entries) over the whole matrix; N:M: the M - N lowest of each group.
    Ties go to the earlier entry, so that the result depends on nothing but the scores.
    """
    if pattern.m:
        if pattern.n == pattern.m:
            return torch.ones_like(scores, dtype=torch.bool)
        rows, columns = scores.shape
        order = scores.reshape(rows, columns // pattern.m, pattern.m).argsort(dim=-1, stable=True)
        keep = torch.ones_like(order, dtype=torch.bool)
        return keep.scatter_(-1, order[..., : pattern.m - pattern.n], False).reshape(rows, columns)
    count = round(sparsity * scores.numel())
    if not count:
        return torch.ones_like(scores, dtype=torch.bool)
    flat = scores.flatten()
    least = flat.kthvalue(count).values  # a selection, several times faster than a sort
    keep = flat > least
    ties = (flat == least).nonzero().squeeze(1)
    keep[ties[count - int((flat < least).sum()) :]] = True
    return keep.reshape(scores.shape)


def obeys(weight: Tensor, pattern: Pattern) -> bool:
    """Whether `weight` [rows, columns] has the zeros that the pattern asks for (unstructured asks for none)."""
    if not pattern.m:
        return True
    if weight.shape[1] % pattern.m:
        return False
    groups = (weight != 0).reshape(weight.shape[0], -1, pattern.m)
    return bool((groups.sum(-1) <= pattern.n).all())


def pack_mask(mask: Tensor) -> Tensor:
    """bool [rows, n] as bytes [rows, ⌈n / 8⌉], lowest bit first."""
    return torch.from_numpy(np.packbits(mask.numpy(), axis=1, bitorder="little"))


def unpack_mask(packed: Tensor, count: int) -> Tensor:
    """The first `count` bits of each row of what `pack_mask` gave: bool [rows, count]."""
    bits = np.unpackbits(packed.numpy(), axis=1, count=count, bitorder="little")
    return torch.from_numpy(bits.view(bool))
