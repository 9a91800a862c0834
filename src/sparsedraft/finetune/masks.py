"""The mask of a pruned drafter: a weight that is exactly 0 stays exactly 0 through training.

Gradients are zeroed where the mask is, so that AdamW's moments there are 0 and its update is 0 / (√0 + ε) = 0, and
weight decay shrinks 0 to 0. The weights themselves are therefore never touched again; `broken` proves it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.decoder import decoder_linears


def masks_of(model: PreTrainedModel, names: list[str]) -> dict[str, Tensor]:
    """Keep-masks (bool, the weight's shape) of the linears in `names`: True where the weight is not exactly 0."""
    linears = decoder_linears(model)
    return {name: linears[name].weight.detach() != 0 for name in names}


def hold(model: PreTrainedModel, masks: dict[str, Tensor], unless: Callable[[], bool] = lambda: False) -> None:
    """From now on, zero the gradients of pruned weights as soon as they are accumulated.

    While `unless()`, they stay dense: mask re-selection looks at them, and zeroes them itself. The masks may change in
    place.
    """

    def zero_pruned(parameter: Tensor, mask: Tensor) -> None:
        assert parameter.grad is not None
        if not unless():
            parameter.grad.mul_(mask)

    linears = decoder_linears(model)
    for name, mask in masks.items():
        linears[name].weight.register_post_accumulate_grad_hook(lambda p, mask=mask: zero_pruned(p, mask))


def broken(model: PreTrainedModel, masks: dict[str, Tensor]) -> list[str]:
    """The linears that have a non-zero weight where the mask says pruned (an empty list is what must come back)."""
    linears = decoder_linears(model)
    return [name for name, mask in masks.items() if bool(torch.any(linears[name].weight.detach()[~mask] != 0))]
