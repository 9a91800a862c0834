"""A tiny random model that runs the same code as a given one: the same classes, layers and options, at small sizes.

What a family's code can do (see `abilities`) is found out by trying it. The model itself would need texts longer than
its windows, which may be thousands of tokens. Here windows, chunks, kernels and all else that counts tokens are NARROW
tokens wide, so a few dozen tokens are enough, in float32.
"""

import copy
import re
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

NARROW = 8  # the limit for every whole number that no rule knows, such as windows of any name
CONTEXT = 512
HIDDEN, INNER, HEADS, HEAD, EXPERTS = 64, 96, 4, 16, 8
GROUPED = -1  # keeps the kind: as many key heads as heads, fewer, or one
VOCABULARY = 128
SPREAD = 1.2  # of random weights, in units of 1 / sqrt(columns): every token changes all later logits

# The first pattern that matches a number's name gives its size in the miniature; None: it stays.
RULES: list[tuple[str, int | None]] = [
    (r"^(num_)?(hidden_|decoder_|encoder_)?layers$|^n_layers?$|_layers$|^num_blocks$|layer_(offset|period|freq)", None),
    (r"(first|last)_k_dense|interval|_(idx|index|indices|ids|step|pattern|period|offset|start|end)$|^pattern", None),
    (r"vocab_size|^entity_vocab|num_embeddings$", VOCABULARY),
    (
        r"max_position|^context_length$|position_embeddings$|^n_positions$|^n_ctx$|max_\w*(len|length|positions)$",
        CONTEXT,
    ),
    (r"(num|n)_(key_value|kv)_heads$|multi_query_group", GROUPED),
    (r"mamba_(n_heads|num_heads)$|n_mamba_heads$", 2 * HIDDEN // HEAD),
    (r"^mamba_d_ssm$", 2 * HIDDEN),
    (r"^qk_head_dim$|^attention_head_dim$", 2 * HEAD),
    (r"head_dim$|headdim$|head_size$|_?d_head$|^d_kv$|head_qk_dim|head_v_dim|^kv_channels$", HEAD),
    (r"(^|_)(n|num)_(\w*_)?heads?$|attention_heads$|^n_head$|^head_num$", HEADS),
    (r"experts_per_tok$|(top|num)?_?k_experts$|moe_topk$|moe_k$|experts_topk|topk_experts", 2),
    (r"^n_group$|^num_expert_group|^expert_groups?$|n_?groups$", 2),
    (r"^topk_group$", 1),
    (r"(n|num)_(\w*_)?experts?$|expert_num", EXPERTS),
    (r"intermediate|ffn|inner|^d_ff$|mlp_dim|feed_forward|_ff_", INNER),
    (r"^(hidden_size|d_model|n_embd|dim|embed_dim|emb_dim|embedding_size|embedding_dim|word_embed_proj_dim)$", HIDDEN),
    (r"^(d_embed|lru_width|hidden_dim|projection_dim|hidden_size_per_layer\w*|proj_size)$", HIDDEN),
    (r"_rank$|^rank$", HEAD),
    (r"_id$", None),
]


def shrunk(config: PretrainedConfig) -> PretrainedConfig:
    """`config` (of a text model) with small sizes and narrow windows.

    Rotary frequencies that depend on the length become the default ones. Raises what the class raises for sizes that do
    not fit together.
    """
    fields = config.to_dict()
    for name in ("quantization_config", "dtype", "torch_dtype", "transformers_version", "_name_or_path"):
        fields.pop(name, None)
    small = type(config).from_dict(copy.deepcopy({**_small(fields), "use_cache": True}))
    small._attn_implementation = config._attn_implementation
    return small


def _small(fields: dict[str, Any]) -> dict[str, Any]:
    heads = next((fields[k] for k in ("num_attention_heads", "n_head", "n_heads") if isinstance(fields.get(k), int)), 0)
    # a state-space model's heads fill what its input is expanded to
    states = fields["expand"] * HIDDEN // HEAD if {"expand", "head_dim", "num_heads"} <= fields.keys() else None
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "attention_hidden_size" and isinstance(value, int):
            small[name] = HIDDEN * max(1, value // fields.get("hidden_size", value))
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            small[name] = _usual_rope(value)
        elif isinstance(value, dict):
            small[name] = _small(value) if all(isinstance(key, str) for key in value) else value
        elif isinstance(value, list) and value and all(type(v) is int for v in value) and _measures(name):
            small[name] = [_number(name, v, heads) for v in value]
        elif type(value) is int:
            small[name] = states if name == "num_heads" and states else _number(name, value, heads)
        else:
            small[name] = value
    return small


def _measures(name: str) -> bool:
    """Whether a list of this name holds sizes (perhaps one for each layer), not indices of layers."""
    sized = next((size for pattern, size in RULES if re.search(pattern, name)), None)
    return sized is not None or "window" in name


def _number(name: str, value: int, heads: int) -> int:
    if name.endswith(("_token_id", "_token_index")):
        return min(value, VOCABULARY - 1)
    size = next((size for pattern, size in RULES if re.search(pattern, name)), NARROW)
    if size is None or value <= 0:
        return value
    if size == GROUPED:
        return HEADS if value == heads else min(value, 2)
    return min(value, size)


def _usual_rope(value: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters that do not depend on the length, cut to the size of a head."""
    rope: dict[str, Any] = {}
    for name, part in value.items():
        if isinstance(part, dict):
            rope[name] = _usual_rope(part)
        elif name == "mrope_section":
            rope[name] = [HEAD // 4, HEAD // 8, HEAD // 8]
        elif name in ("rope_type", "type") and ("dynamic" in str(part) or part == "longrope"):
            rope[name] = "default"
        elif name not in ("long_factor", "short_factor"):
            rope[name] = part
    return rope


def build(kind: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A float32 model of this class in evaluation mode; its random weights are so large that every token matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind._from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for module in model.modules():
                weight = getattr(module, "weight", None)
                known = isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D"
                if known and isinstance(weight, torch.Tensor):
                    wide = HIDDEN if isinstance(module, nn.Embedding) else weight.shape[-1]
                    weight.normal_(0, SPREAD / wide**0.5)
    return model.eval()


def transformers_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The transformers class of `model`, also where a subclass of it has been put on top."""
    return next((k for k in type(model).__mro__ if k.__module__.startswith("transformers.models.")), type(model))
