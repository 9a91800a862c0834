"""Which architectures the native engine runs (llama, mistral, qwen2, qwen3, gemma3 text), and their settings."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from sparsedraft.base.errors import Unsupported, UserError
from sparsedraft.models import quantizers
from sparsedraft.models.decoder import context_of
from sparsedraft.models.skeleton import building, skeleton
from sparsedraft.native.cache_size import CACHES, bytes_per_token

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
ROPES = ("default", "linear", "llama3", "yarn")  # rotary embeddings that do not change with the length
QUANTISED = "its weights are quantised ({})"
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "max_position_embeddings", "vocab_size", "sliding_window",
)  # fmt: skip
NUMBERS = ("rms_norm_eps", "query_pre_attn_scalar", "final_logit_softcapping")


def unsupported(config: PretrainedConfig) -> str | None:
    """Why the engine does not run a model of `config`; None where it does."""
    if quantised := quantizers.method_of(config):
        return QUANTISED.format(quantised)
    config = config.get_text_config()
    if config.model_type not in FAMILIES:
        return f"its architecture {config.model_type} is not one of {', '.join(FAMILIES)}"
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation not in ("silu", "gelu_pytorch_tanh"):
        return f"its activation is {activation}"
    for rope in ropes(config).values():
        if rope.get("rope_type", "default") not in ROPES:
            return f"its rotary embedding is {rope.get('rope_type')}"
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            return "only a part of each head is rotated"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention scores are capped"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention looks ahead"
    return None


def ropes(config: PretrainedConfig) -> dict[str, dict[str, Any]]:
    """Rotary embeddings by the type of layer; one under "" where all layers share it."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = {k: v for k, v in parameters.items() if isinstance(v, dict)}
    layer_types = getattr(config, "layer_types", None) or nested
    return {k: v for k, v in nested.items() if k in layer_types} or {"": parameters}


def is_gemma(config: PretrainedConfig) -> bool:
    return config.model_type == "gemma3_text"


@dataclass(frozen=True)
class Precision:
    """The type of keys and values; whether products take inputs of 16 bits where their kernels take 8."""

    cache: str = "int16"
    fine_inputs: bool = False


def head_dim_of(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def window_of(config: PretrainedConfig, layer_type: str) -> int:
    """Tokens that attention sees in a layer of this type; 0: all."""
    sliding = layer_type == "sliding_attention" or (config.model_type == "mistral" and config.sliding_window)
    return (config.sliding_window or 0) if sliding else 0


def layer_type_of(config: PretrainedConfig, index: int) -> str:
    layer_types = getattr(config, "layer_types", None)
    return layer_types[index] if layer_types else "full_attention"


def settings_of(folder: Path, config: PretrainedConfig, precision: Precision) -> dict[str, Any]:
    """The settings of the extension's model; `folder` is for messages.

    UserError where rope_parameters names a type of layer that the model does not have.
    """
    gemma, head_dim = is_gemma(config), head_dim_of(config)
    scalar = getattr(config, "query_pre_attn_scalar", None) or head_dim
    frequencies, scalings = _rotary_tables(folder, config)
    return {
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": head_dim,
        "intermediate": config.intermediate_size,
        "max_length": context_of(config) or 0,
        "eps": config.rms_norm_eps,
        "attention_scale": scalar**-0.5,
        "embedding_scale": _gemma_embedding_scale(config) if gemma else 1.0,
        "cache_bits": CACHES[precision.cache],
        "fine_inputs": precision.fine_inputs,
        "softcap": getattr(config, "final_logit_softcapping", None) or 0.0,
        "gelu": "gelu" in (getattr(config, "hidden_activation", None) or config.hidden_act),
        "norm_one_more": gemma,
        "inv_freq": frequencies,
        "rope_scaling": scalings,
    }


def _rotary_tables(folder: Path, config: PretrainedConfig) -> tuple[list[Any], list[float]]:
    """(inverse frequencies [head_dim / 2], scaling of cos and sin) of each type of layer, sorted by name."""
    rotary = rotary_embedding(config)
    names = sorted(ropes(config))
    if lacking := next((n for n in names if n and not hasattr(rotary, f"{n}_inv_freq")), None):
        raise UserError(f"model {folder} has no layers of the kind {lacking} that rope_parameters names: mend it.")
    frequencies = [getattr(rotary, f"{n}_inv_freq" if n else "inv_freq").float().numpy() for n in names]
    scalings = [float(getattr(rotary, f"{n}_attention_scaling" if n else "attention_scaling")) for n in names]
    return frequencies, scalings


def rotary_embedding(config: PretrainedConfig) -> Any:
    """The rotary embedding of `config`. Its class is taken from a tiny model of the same family."""
    small = copy.deepcopy(config)
    small.hidden_size = small.head_dim = small.intermediate_size = small.vocab_size = 8
    small.num_hidden_layers = small.num_attention_heads = small.num_key_value_heads = 1
    if getattr(config, "layer_types", None):
        small.layer_types = config.layer_types[:1]
    small.pad_token_id = None
    modules = skeleton(small).named_modules()
    kind = type(next(module for name, module in modules if name.endswith("rotary_emb")))
    with building(config):
        return kind(config)


def _gemma_embedding_scale(config: PretrainedConfig) -> float:
    """Gemma multiplies embeddings by √hidden, rounded to the dtype of its weights: here float32."""
    return float(torch.tensor(config.hidden_size**0.5))


def check_numbers(folder: Path, config: PretrainedConfig) -> None:
    """UserError for a size or another number of config.json that no model can have."""
    for name in (*SIZES, *NUMBERS):
        value = getattr(config, name, None)
        kind, most = (int, 2**31) if name in SIZES else (int | float, 1e30)
        right = isinstance(value, kind) and not isinstance(value, bool) and 0 <= value < most
        if value is not None and not right:
            raise UserError(
                f"model {folder} has {name} {value!r} in config.json, which no model can have: copy it again."
            )


def cache_bytes(config: PretrainedConfig) -> dict[str, int] | None:
    """Bytes of keys and values a token, by the type of the cache; None where the engine does not run the model."""
    text = config.get_text_config()
    if unsupported(config):
        return None
    return bytes_per_token(text.num_hidden_layers, text.num_key_value_heads, head_dim_of(text))


def check_layer_types(folder: Path, config: PretrainedConfig) -> None:
    """Unsupported for layer_types that do not name one type a layer; some families do not read them."""
    types = getattr(config, "layer_types", None)
    if types is not None and (not isinstance(types, list) or len(types) != config.num_hidden_layers):
        field = f"{len(types)} layer_types" if isinstance(types, list) else f"layer_types {types!r:.40}"
        raise Unsupported(
            f"model {folder} has {field} in config.json for {config.num_hidden_layers} layers: copy it again."
        )
