"""What a model costs a token, and how sparse it is, whether its matrices are packed or plain."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sparsedraft.models.decoder import count_zeros, decoder_layers
from sparsedraft.models.macs import macs_of_model, nonzero_parameters
from sparsedraft.models.matrices import matrices
from sparsedraft.native.modules import Packed, PackedHead


def weights_of_model(model: PreTrainedModel) -> dict[str, Any]:
    """What Side.weights says of a transformers model: None for what its structure does not tell."""
    if holds_packed(model):
        return packed_weights(model)
    found = matrices(model)
    zeros = size = 0
    if found is not None:
        zeros = sum(count_zeros(matrix.weight) for matrix in found.values())
        size = sum(matrix.weight.numel() for matrix in found.values())
    # what a quantiser packs is not one number for each weight
    nonzero, parameters = (None, None) if getattr(model, "is_quantized", False) else nonzero_parameters(model)
    return {
        "macs_per_token": macs_of_model(model),
        "nonzero_params": nonzero,
        "sparsity": zeros / size if size else None,
        "sparsity_whole_model": None if nonzero is None or not parameters else 1 - nonzero / parameters,
    }


def holds_packed(model: nn.Module) -> bool:
    """Whether the model's matrices are packed ones, not nn.Linear."""
    return any(isinstance(module, Packed) for module in model.modules())


def packed_weights(model: PreTrainedModel) -> dict[str, Any]:
    """What Side.weights says, of a packed model; a trimmed head costs the rows that it has."""
    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    found = [module for module in model.modules() if isinstance(module, Packed) and not _tied(module)]
    counted = {id(m): (int(torch.count_nonzero(values)), values.numel()) for m in found for values, _ in [m.unpacked()]}
    nonzero = sum(counted[id(m)][0] for m in found if id(m) in inside)
    weights = sum(counted[id(m)][1] for m in found if id(m) in inside)
    others_nonzero, others = nonzero_parameters(model)
    others_nonzero += sum(counted[id(m)][0] for m in found if id(m) not in inside)
    others += sum(counted[id(m)][1] for m in found if id(m) not in inside)
    head = model.get_output_embeddings()
    rows = len(head.ids) if isinstance(head, PackedHead) and head.ids is not None else head.out_features
    return {
        "macs_per_token": nonzero + rows * model.config.get_text_config().hidden_size,
        "nonzero_params": others_nonzero + nonzero,
        "sparsity": 1 - nonzero / weights,
        "sparsity_whole_model": 1 - (others_nonzero + nonzero) / (others + weights),
    }


def _tied(module: Packed) -> bool:
    """Whether its rows are another's, which are counted there."""
    return isinstance(module, PackedHead) and not module._buffers
