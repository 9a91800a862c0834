"""How much to prune in each layer, so that the mean over all weights is what was asked for."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.prune import sequential

OUTLIER = 5.0  # M of the paper: an outlier is more than so many times the layer's mean score
SPREAD = 0.08  # λ of the paper: layers stay within ± λ of the mean


def owl(model: PreTrainedModel, ids: Tensor, sparsity: float) -> list[float]:
    """OWL (Yin et al. 2024): sparsity by layer, lower where more of Wanda's scores |w|·‖x‖ are outliers.

    The outlier ratios of the dense model are scaled into ± SPREAD around `sparsity`; their mean is exactly it.
    """
    ratios = []
    for index, layer, activations in sequential.walk(model, ids):
        linears = sequential.linears_of(layer)
        found = sequential.hessians(layer, index, activations)
        scores = [linear.weight.detach().float().abs() * found[name].norms() for name, linear in linears.items()]
        mean = sum(float(s.sum()) for s in scores) / sum(s.numel() for s in scores)
        outliers = sum(int((s > OUTLIER * mean).sum()) for s in scores)
        ratios.append(outliers / sum(s.numel() for s in scores))
    return spread(torch.tensor(ratios, dtype=torch.float64), sparsity)


def spread(ratios: Tensor, sparsity: float) -> list[float]:
    """Sparsities by layer from outlier `ratios` [layers]: as far apart as ± SPREAD allows, mean `sparsity`."""
    low, high = float(ratios.min()), float(ratios.max())
    if high == low:
        return [sparsity] * len(ratios)
    reach = min(SPREAD, sparsity, 1 - sparsity)
    scaled = (ratios - low) / (high - low) * 2 * reach
    return (sparsity + scaled.mean() - scaled).clamp(0, 1).tolist()
