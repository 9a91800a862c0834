"""How much to prune in each linear, so that the MACs left are what was asked for."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsedraft.layerwise import sequential
from sparsedraft.layerwise.sequential import Activations
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models.decoder import linears_of

OUTLIER = 5.0  # M of OWL: an outlier is more than so many times the layer's mean score
SPREAD = 0.08  # λ of OWL: the layers' sparsities are spread 2λ wide

Shares = dict[tuple[int, str], float]  # sparsity by (layer, linear)


def uniform(model: Streamed, sparsity: float) -> Shares:
    """The same sparsity for every linear (the paper's)."""
    return {(index, name): sparsity for index, name, _ in model.linears()}


def owl(model: Streamed, ids: Tensor, folder: Path, pattern: Pattern, sparsity: float) -> Shares:
    """OWL (Yin et al. 2024): lower sparsity in layers where more of Wanda's scores |w|·‖x‖ are outliers.

    The outlier ratios of the dense model are scaled to sparsities 2·SPREAD wide; their mean is exactly `sparsity`. For
    N:M each layer gets a whole N, whose mean is the pattern's.
    """

    def outliers(layer: nn.Module, index: int, activations: Activations) -> float:
        hessians = sequential.hessians(layer, index, activations)
        scores = [
            linear.weight.detach().float().abs() * hessians[name].norms() for name, linear in linears_of(layer).items()
        ]
        count = sum(s.numel() for s in scores)
        mean = sum(float(s.sum()) for s in scores) / count
        return sum(int((s > OUTLIER * mean).sum()) for s in scores) / count

    ratios = sequential.measure(model, ids, folder, outliers)
    shares = spread(torch.tensor(ratios, dtype=torch.float64), sparsity)
    if pattern.m:
        shares = whole(shares, pattern)
    return {(index, name): shares[index] for index, name, _ in model.linears()}


def spread(ratios: Tensor, sparsity: float) -> list[float]:
    """Sparsities by layer from outlier `ratios` [layers]: 2·SPREAD apart at most, mean `sparsity`.

    They are moved closer together where one of them would leave 0…1.
    """
    low, high = float(ratios.min()), float(ratios.max())
    if high == low:
        return [sparsity] * len(ratios)
    scaled = (ratios - low) / (high - low)
    mean = float(scaled.mean())
    width = min(2 * SPREAD, 0.9 * (1 - sparsity) / mean, 0.9 * sparsity / (1 - mean))
    return (sparsity + width * (mean - scaled)).tolist()


def whole(shares: Sequence[float], pattern: Pattern) -> list[float]:
    """The nearest sparsities that N:M can have, at least 1:M each, with the pattern's N on average."""
    exact = [min(max((1 - share) * pattern.m, 1), pattern.m) for share in shares]
    n = [int(k) for k in exact]
    missing = pattern.n * len(n) - sum(n)
    for i in sorted(range(len(n)), key=lambda i: n[i] - exact[i])[: max(missing, 0)]:  # the largest remainders
        n[i] += 1
    for _ in range(-missing):  # the least N of 1 raised some layers: those that were rounded up most give it back
        n[max((i for i in range(len(n)) if n[i] > 1), key=lambda i: n[i] - exact[i])] -= 1
    return [1 - k / pattern.m for k in n]
