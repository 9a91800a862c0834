"""What a model costs a token, and how sparse it is: plain, packed in transformers, or native."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sparsedraft.models.decoder import count_zeros, decoder_layers
from sparsedraft.models.macs import macs_of_model, nonzero_parameters
from sparsedraft.models.matrices import matrices
from sparsedraft.native.model import NativeModel
from sparsedraft.native.modules import PackedHead, PackedModule


def _cost(macs: int | None, nonzero: int | None, sparsity: float | None, whole: float | None) -> dict[str, Any]:
    return {
        "macs_per_token": macs,
        "nonzero_params": nonzero,
        "sparsity": sparsity,  # of the decoder linears
        "sparsity_whole_model": whole,
    }


def cost_of_model(model: PreTrainedModel) -> dict[str, Any]:
    """macs_per_token, nonzero_params, sparsity and sparsity_whole_model of a transformers model, packed or plain.

    None for what the model's structure does not tell (see models.matrices).
    """
    if holds_packed(model):
        return cost_of_packed_model(model)
    linears = matrices(model)
    zeros = size = 0
    if linears is not None:
        zeros = sum(count_zeros(matrix.weight) for matrix in linears.values())
        size = sum(matrix.weight.numel() for matrix in linears.values())
    # what a quantiser packs is not one number for each weight
    nonzero, parameters = (None, None) if getattr(model, "is_quantized", False) else nonzero_parameters(model)
    whole = None if nonzero is None or not parameters else 1 - nonzero / parameters
    return _cost(macs_of_model(model), nonzero, zeros / size if size else None, whole)


def holds_packed(model: nn.Module) -> bool:
    """Whether the model's matrices are packed modules, not nn.Linear."""
    return any(isinstance(module, PackedModule) for module in model.modules())


def cost_of_packed_model(model: PreTrainedModel) -> dict[str, Any]:
    """The same of a packed model in transformers; a trimmed head costs the rows that it has."""
    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    linear_nonzero = linear_weights = 0
    other_nonzero, others = nonzero_parameters(model)
    for module in model.modules():
        if not isinstance(module, PackedModule) or _tied(module):
            continue
        stored = module.unpacked()
        nonzero, size = stored.nonzero, stored.size
        if id(module) in inside:
            linear_nonzero += nonzero
            linear_weights += size
        else:
            other_nonzero += nonzero
            others += size
    head = model.get_output_embeddings()
    rows = len(head.ids) if isinstance(head, PackedHead) and head.ids is not None else head.out_features
    macs = linear_nonzero + rows * model.config.get_text_config().hidden_size
    nonzero = other_nonzero + linear_nonzero
    return _cost(macs, nonzero, 1 - linear_nonzero / linear_weights, 1 - nonzero / (others + linear_weights))


def _tied(module: PackedModule) -> bool:
    """Whether the module reads another's rows, which are counted there."""
    return isinstance(module, PackedHead) and not module._buffers


def cost_of_native_model(model: NativeModel) -> dict[str, Any]:
    """The same of a native model."""
    nonzero = model.other_nonzero + model.linear_nonzero
    whole = 1 - nonzero / (model.other_parameters + model.linear_weights)
    return _cost(model.macs_per_token, nonzero, 1 - model.linear_nonzero / model.linear_weights, whole)
