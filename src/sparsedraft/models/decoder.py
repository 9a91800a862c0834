"""Where the decoder's layers and their linears are in a transformers model."""

import torch
from torch import nn
from transformers import PretrainedConfig

from sparsedraft.base.errors import UserError

LONGEST = 2**31 - 1  # tokens that any context holds
# what families call the norm before the head
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "embedding_norm", "layer_norm", "norm_f")


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The one ModuleList that holds the decoder layers.

    It is the list whose length is the config's `num_hidden_layers`. Raises UserError where there is none.
    """
    return named_layers(model)[1]


def named_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name of the list of decoder layers inside `model`, and the list."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    count = getattr(text, "num_hidden_layers", None)
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise UserError(
            f"model {type(model).__name__} has no single list of {count} decoder layers: "
            "only decoder-only language models can be used."
        )
    return min(lists, key=lambda item: item[0].count("."))  # an expert list inside a layer lies deeper


def final_norm(model: nn.Module) -> tuple[str, nn.Module]:
    """The name of the norm between the last decoder layer and the head of `model`, and the norm.

    Raises UserError where it is not found.
    """
    parent = named_layers(model)[0].rpartition(".")[0]
    inside = dict(model.get_submodule(parent).named_children())
    name = next((name for name in FINAL_NORMS if name in inside), None)
    if name is None:
        raise UserError(
            f"model {type(model).__name__} has no final norm that is known here, so its head cannot be rounded on "
            "text: give --head-weights int8."
        )
    return f"{parent}.{name}".lstrip("."), inside[name]


def linears_of(layer: nn.Module, prefix: str = "") -> dict[str, nn.Linear]:
    """Every nn.Linear inside one decoder layer, by its name relative to the layer, in order.

    Raises UserError for a matrix of weights that is not an nn.Linear (fused experts, quantised weights); the message
    names it, with `prefix` in front.
    """
    linears: dict[str, nn.Linear] = {}
    for name, module in layer.named_modules():
        if type(module) is nn.Linear:
            linears[name] = module
            continue
        for key, value in module.named_parameters(recurse=False):
            if value.dim() >= 2 and not isinstance(module, nn.Embedding):
                raise UserError(
                    f"module '{'.'.join(part for part in (prefix, name) if part)}' ({type(module).__name__}) keeps its "
                    f"weights in '{key}' {list(value.shape)}, not in a plain linear: a model with fused experts or "
                    "quantised weights can be a target as it is, but what is pruned, cut or packed, such as the "
                    "drafter, must be made of plain linears."
                )
    return linears


def decoder_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every nn.Linear inside the decoder layers by its full name (as in the state dict, without ".weight")."""
    prefix, layers = named_layers(model)
    return {
        f"{prefix}.{i}.{name}": linear
        for i, layer in enumerate(layers)
        for name, linear in linears_of(layer, f"{prefix}.{i}").items()
    }


def context_length(model: nn.Module) -> int | None:
    """Tokens that fit in the model's context; None where its config names no limit."""
    return context_of(model.config)  # type: ignore[arg-type]


def context_of(config: PretrainedConfig) -> int | None:
    """Tokens that fit in the context of the model that `config` describes; None where it names no limit.

    YaRN stretches the original length by its factor. config.json may still name the length before that, as Qwen's
    instructions for long texts tell users to write it.
    """
    text = config.get_text_config()
    most: int | None = getattr(text, "max_position_embeddings", None)
    if most is not None and most <= 0:  # XLNet's way to name no limit
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    if most is None or not isinstance(rope, dict) or rope.get("rope_type") != "yarn":
        return most
    stated = [rope.get("original_max_position_embeddings"), rope.get("factor")]
    original, factor = (n if isinstance(n, int | float) and 0 < n < LONGEST else 0 for n in stated)
    return max(most, min(int(original * factor), LONGEST))


def embedding_rows(model: nn.Module) -> int:
    """Rows of the embedding: one more than the largest token id that the model can read."""
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    return weight.shape[0]


def count_zeros(weight: torch.Tensor) -> int:
    """How many entries of `weight` are exactly 0."""
    if weight.is_floating_point() and weight.element_size() == 1:  # torch cannot count 8-bit floats
        weight = weight.float()
    return weight.numel() - int(torch.count_nonzero(weight))
