"""The mask of a pruned drafter: a weight that was pruned stays exactly 0 through training.

It was pruned if it is 0; or, where `prune --quantize int4` wrote the checkpoint, if the mask beside it says so.

In training the optimizer holds the masks (`adamw.MaskedAdamW.hold`): it zeroes the gradients of pruned weights and
never writes to the weights themselves. `broken` proves it.
"""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.models import claims, rounded
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.stages.finetune.sharding import local


def masks_of(model: PreTrainedModel, names: list[str]) -> dict[str, Tensor]:
    """Keep-masks (bool, the weight's shape) of the linears in `names`: True where the weight is not exactly 0."""
    linears = decoder_linears(model)
    return {name: linears[name].weight.detach() != 0 for name in names}


def stored_masks(folder: Path, model: PreTrainedModel, claim: dict[str, Any]) -> dict[str, Tensor]:
    """The keep-masks of the linears that the checkpoint in `folder` claims, of `model` as it was loaded from there.

    UserError where a mask that lies beside rounded weights is missing, damaged, or not theirs.
    """
    masks, linears = masks_of(model, list(claim["linears"])), decoder_linears(model)
    for name in masks:
        weight = linears[name].weight.detach()
        stored = rounded.mask_of(folder, name, weight, claims.pattern_of(claim, name))
        if stored is not None:
            masks[name] = stored.to(weight.device)
    return masks


def broken(model: PreTrainedModel, masks: dict[str, Tensor]) -> list[str]:
    """The linears that have a non-zero weight where the mask says pruned: none, if all is well.

    Where the model is sharded, `masks` are this process's parts, and so is the answer.
    """
    linears = decoder_linears(model) if masks else {}
    return [name for name, mask in masks.items() if local(linears[name].weight.detach())[~mask].any()]
