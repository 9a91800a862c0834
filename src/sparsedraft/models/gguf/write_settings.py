"""A transformers config as the keys of a GGUF file. What llama.cpp's model would not do is refused, never left out."""

from typing import Any

from transformers import PretrainedConfig

from sparsedraft.base.errors import UserError
from sparsedraft.models.gguf.write_rope import rope_keys

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # model_type: llama.cpp's
CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
WHOLE_ROWS = {"qwen2"}  # whose heads together are as wide as the hidden states
BIASES = {"llama": ("self_attn", "mlp"), "qwen2": ("self_attn",), "qwen3": ()}  # where llama.cpp reads biases

Values = dict[str, Any]  # whole numbers, numbers, text, booleans


def check_architecture(ref: str, config: PretrainedConfig) -> None:
    """Raise UserError unless the model of `config`, called `ref`, is one that llama.cpp runs as transformers does."""
    found = (getattr(config, "architectures", None) or ["none"])[0]
    if config.model_type not in ARCHITECTURES or found not in CLASSES:
        raise UserError(f"model {ref} is a {found}: {', '.join(CLASSES[:-1])} and {CLASSES[-1]} can be exported.")
    arch = ARCHITECTURES[config.model_type]
    for what, (holds, value) in _conditions(config, arch).items():
        if not holds:
            raise UserError(f"model {ref} has {what} {str(value)[:80]}, which llama.cpp's {arch} does not do.")


def _conditions(config: PretrainedConfig, arch: str) -> dict[str, tuple[bool, Any]]:
    """Each setting that must hold: (whether it does, its value)."""

    def get(name: str) -> Any:
        return getattr(config, name, None)

    layers = get("layer_types") or []
    window = get("sliding_window") if config.model_type == "mistral" or get("use_sliding_window") else None
    found = {
        "hidden_act": (get("hidden_act") == "silu", get("hidden_act")),
        "layer_types": (set(layers) <= {"full_attention"}, sorted(set(layers))),
        "sliding_window": (window is None, window),
    }
    for part, setting in (("self_attn", "attention_bias"), ("mlp", "mlp_bias")):
        found[setting] = (part in BIASES[arch] or not get(setting), get(setting))
    if arch in WHOLE_ROWS:
        head = get("head_dim") or config.hidden_size // config.num_attention_heads
        found["head_dim"] = (head * config.num_attention_heads == config.hidden_size, head)
    return found


def settings(ref: str, config: PretrainedConfig) -> Values:
    """The keys of the architecture. UserError for a rotary embedding that llama.cpp does not have."""
    arch = ARCHITECTURES[config.model_type]
    found: Values = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }
    if (head := getattr(config, "head_dim", None)) is not None:
        found |= {"attention.key_length": head, "attention.value_length": head}
    if arch == "llama":
        found["vocab_size"] = config.vocab_size
        found["rope.dimension_count"] = head or config.hidden_size // config.num_attention_heads
    found |= rope_keys(ref, config, arch)
    return {f"{arch}.{name}": value for name, value in found.items()}
