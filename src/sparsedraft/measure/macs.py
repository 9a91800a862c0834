"""Multiply-accumulates per token: the non-zero weights of every linear, lm_head included and dense.

Of experts the active ones count (see `matrices`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from sparsedraft.checkpoint import UNREADABLE
from sparsedraft.decoder import count_zeros, decoder_layers
from sparsedraft.errors import UserError, first_line
from sparsedraft.measure.matrices import matrices
from sparsedraft.runtime.modules import Packed, PackedHead


def macs_of_model(model: PreTrainedModel, sparsity: float | None = None) -> int | None:
    """MACs per token of `model`: Σ over linears of their non-zero weights; None where its layers hold something else.

    The decoder's linears count what is not zero (or, with `sparsity` given, that share of them is taken as zero, which
    needs no weights at all); the head counts whole, also where it is tied; an embedding look-up costs nothing, and
    attention scores are left out because they depend on the context.
    """
    found = matrices(model)
    if found is None:
        return None
    return round(sum(matrix.macs(sparsity) for matrix in found.values())) + dense_weights(model)


def dense_weights(model: PreTrainedModel) -> int:
    """Weights of the linears outside the decoder layers: the head, and what projects in or out (OPT-350m)."""
    inside = {id(module) for module in decoder_layers(model).modules()}
    linears = {id(m): m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in inside}
    head = model.get_output_embeddings()
    return sum(m.weight.numel() for m in {**linears, id(head): head}.values())


@contextmanager
def building(config: PretrainedConfig) -> Iterator[None]:
    """UserError where transformers cannot make modules of `config`, whose fields it hardly checks."""
    try:
        yield
    except UNREADABLE as error:
        raise UserError(
            f"a config.json of type {config.model_type} describes no model that can be built ({first_line(error)}): "
            "copy it again."
        ) from None


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model of `config` with no memory behind its weights (torch's meta device); UserError where there is none."""
    with building(config), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def macs_of_config(config: PretrainedConfig, sparsity: float = 0.0) -> int | None:
    """MACs per token of the model that `config` describes, with `sparsity` of every decoder linear pruned; None as in
    `macs_of_model`."""
    return macs_of_model(skeleton(config), sparsity)


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


def nonzero_parameters(model: nn.Module) -> tuple[int, int]:
    """(non-zero parameters, all parameters), tied tensors counted once."""
    sizes = [(p.numel() - count_zeros(p), p.numel()) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for _, n in sizes)


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
