"""The mask of a pruned drafter: a weight that is exactly 0 stays exactly 0 through training.

In training the optimizer holds the masks (`adamw.MaskedAdamW.hold`): it zeroes the gradients of pruned weights and
never writes to the weights themselves. `broken` proves it.
"""

from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.models.decoder import decoder_linears
from sparsedraft.stages.finetune.sharding import local


def masks_of(model: PreTrainedModel, names: list[str]) -> dict[str, Tensor]:
    """Keep-masks (bool, the weight's shape) of the linears in `names`: True where the weight is not exactly 0."""
    linears = decoder_linears(model)
    return {name: linears[name].weight.detach() != 0 for name in names}


def broken(model: PreTrainedModel, masks: dict[str, Tensor]) -> list[str]:
    """The linears that have a non-zero weight where the mask says pruned: none, if all is well.

    Where the model is sharded, `masks` are this process's parts, and so is the answer.
    """
    linears = decoder_linears(model) if masks else {}
    return [name for name, mask in masks.items() if local(linears[name].weight.detach())[~mask].any()]
