"""Multiply-accumulates per token: the non-zero weights of every linear, lm_head included and dense.

Of experts the active ones count (see `matrices`).
"""

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from sparsedraft.models.decoder import count_zeros, decoder_layers
from sparsedraft.models.matrices import matrices
from sparsedraft.models.skeleton import skeleton


def macs_of_model(model: PreTrainedModel, sparsity: float | None = None) -> int | None:
    """MACs per token of `model`: Σ over linears of their non-zero weights; None where its layers hold something else.

    Weights inside the decoder count if they are not zero. With `sparsity`, that share of them counts as zero instead,
    and the weights need not be in memory. The head counts whole, even where it is tied. An embedding look-up costs
    nothing, and attention scores are left out because they depend on the context.
    """
    by_name = matrices(model)
    if by_name is None:
        return None
    return round(sum(matrix.macs(sparsity) for matrix in by_name.values())) + dense_weights(model)


def dense_weights(model: PreTrainedModel) -> int:
    """Weights of the linears outside the decoder layers: the head, and what projects in or out (OPT-350m)."""
    inside = {id(module) for module in decoder_layers(model).modules()}
    linears = {id(m): m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in inside}
    head = model.get_output_embeddings()
    return sum(m.weight.numel() for m in {**linears, id(head): head}.values())


def macs_of_config(config: PretrainedConfig, sparsity: float = 0.0) -> int | None:
    """MACs per token of the model that `config` describes, with `sparsity` of every decoder linear pruned; None as in
    `macs_of_model`."""
    return macs_of_model(skeleton(config), sparsity)


def nonzero_parameters(model: nn.Module) -> tuple[int, int]:
    """(non-zero parameters, all parameters), tied tensors counted once."""
    sizes = [(p.numel() - count_zeros(p), p.numel()) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for _, n in sizes)
