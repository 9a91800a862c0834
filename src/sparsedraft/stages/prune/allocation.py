"""How much to prune in each linear, so that the MACs left are what was asked for."""

import heapq
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsedraft.maths.pattern import Pattern
from sparsedraft.models.decoder import linears_of
from sparsedraft.stages.prune import sequential, sparsegpt
from sparsedraft.stages.prune.sequential import Activations
from sparsedraft.stages.prune.streamed import Streamed

OUTLIER = 5.0  # M of OWL: an outlier is more than so many times the layer's mean score
SPREAD = 0.08  # λ of OWL: the layers' sparsities are spread 2λ wide
STEPS = 8  # densities that `auto` tries: the eighths and the uniform one, or every N where M is less
ROWS = 128  # rows of a weight from which `auto` measures its error

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
        found = sequential.hessians(layer, index, activations)
        scores = [
            linear.weight.detach().float().abs() * found[name].norms() for name, linear in linears_of(layer).items()
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
    kept = [min(max((1 - share) * pattern.m, 1), pattern.m) for share in shares]
    n = [int(k) for k in kept]
    missing = pattern.n * len(n) - sum(n)
    for i in sorted(range(len(n)), key=lambda i: n[i] - kept[i])[: max(missing, 0)]:  # the largest remainders
        n[i] += 1
    for _ in range(-missing):  # the least N of 1 lifted some: the most generous of the others give it back
        n[max((i for i in range(len(n)) if n[i] > 1), key=lambda i: n[i] - kept[i])] -= 1
    return [1 - k / pattern.m for k in n]


def auto(model: Streamed, ids: Tensor, folder: Path, pattern: Pattern, sparsity: float) -> Shares:
    """Densities for which the sum of the linears' relative errors is least at the MACs of uniform `sparsity`.

    The error ‖(W-Ŵ)X‖² / ‖WX‖² of every linear of the dense model is measured on some of its rows by SparseGPT itself,
    at each of the densities that it may get.
    """
    densities = choices(pattern, 1 - sparsity)

    def curves(layer: nn.Module, index: int, activations: Activations) -> dict[str, list[float]]:
        found = sequential.hessians(layer, index, activations)
        return {
            name: curve(linear.weight, found[name], pattern, densities) for name, linear in linears_of(layer).items()
        }

    measured = sequential.measure(model, ids, folder, curves)
    names = [(index, name) for index, name, _ in model.linears()]
    sizes = [linear.weight.numel() for _, _, linear in model.linears()]
    errors = [measured[index][name] for index, name in names]
    chosen = least_error(sizes, densities, errors, (1 - sparsity) * sum(sizes))
    return {name: 1 - densities[choice] for name, choice in zip(names, chosen, strict=True)}


def choices(pattern: Pattern, density: float) -> list[float]:
    """The densities that `auto` chooses from, rising, the last 1, none of which makes the mean `density` impossible."""
    if not pattern.m:
        return sorted({i / STEPS for i in range(1, STEPS + 1)} | {density, min(density, 1 / STEPS) / 2})
    steps = min(pattern.m, STEPS)
    return [n / pattern.m for n in sorted({max(1, pattern.m * i // steps) for i in range(1, steps + 1)} | {pattern.n})]


def curve(weight: Tensor, hessian: sparsegpt.Hessian, pattern: Pattern, densities: Sequence[float]) -> list[float]:
    """Relative error of `weight` at each of `densities`, from at most ROWS of its rows."""
    sample = weight.detach()[:: max(1, len(weight) // ROWS)].float()
    found = []
    for density in densities[:-1]:
        pruned, _ = sparsegpt.prune(sample, hessian, pattern.at(density), 1 - density)
        found.append(sparsegpt.relative_error(sample, pruned, hessian.H))
    return [*found, 0.0]


def least_error(
    sizes: Sequence[int], densities: Sequence[float], errors: Sequence[Sequence[float]], budget: float
) -> list[int]:
    """For each linear the index of its density, so that the sum of `errors` is least within `budget` weights kept.

    Every linear starts at the lowest density; the step that saves most error per weight, on the lower convex hull of
    its curve, is taken as long as it fits. That is optimal for the budget it ends at (Lagrange), and what the last
    steps leave is less than one step of one linear.
    """
    left = budget - sum(densities[0] * size for size in sizes)
    at = [0] * len(sizes)
    heap: list[tuple[float, int, int]] = []

    def cost(i: int, j: int) -> float:
        return (densities[j] - densities[at[i]]) * sizes[i]

    def offer(i: int) -> None:
        steps = [
            ((errors[i][at[i]] - errors[i][j]) / cost(i, j), j)
            for j in range(at[i] + 1, len(densities))
            if cost(i, j) <= left + 1e-6 * budget
        ]
        if steps:
            gain, j = max(steps, key=lambda step: (step[0], -step[1]))
            heapq.heappush(heap, (-gain, i, j))

    for i in range(len(sizes)):
        offer(i)
    while heap:
        _, i, j = heapq.heappop(heap)
        if cost(i, j) <= left + 1e-6 * budget:
            left -= cost(i, j)
            at[i] = j
        offer(i)  # its next step; or, where that one no longer fits, a smaller one
    return at
