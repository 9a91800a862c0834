"""The mask of a pruned drafter: a weight that is exactly 0 stays exactly 0 through training.

In training the masks are the optimizer's (`adamw.MaskedAdamW.hold`): it zeroes the gradients of pruned weights and
never writes to the weights themselves. `broken` proves it.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.decoder import decoder_linears
from sparsedraft.finetune.sharding import local, part


def masks_of(model: PreTrainedModel, names: list[str]) -> dict[str, Tensor]:
    """Keep-masks (bool, the weight's shape) of the linears in `names`: True where the weight is not exactly 0."""
    linears = decoder_linears(model)
    return {name: linears[name].weight.detach() != 0 for name in names}


def broken(model: PreTrainedModel, masks: dict[str, Tensor]) -> list[str]:
    """The linears that have a non-zero weight where the mask says pruned (an empty list is what must come back)."""
    linears = decoder_linears(model)

    def revived(weight: Tensor, mask: Tensor) -> bool:
        return bool(torch.any(local(weight.detach())[~part(mask, weight)] != 0))

    return [name for name, mask in masks.items() if revived(linears[name].weight, mask)]
