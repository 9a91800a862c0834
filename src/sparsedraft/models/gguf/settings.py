"""The keys of a GGUF file as settings of a transformers config; none may be lost.

transformers reads the keys it knows and silently leaves the rest at its defaults. Here every key of an architecture is
one that transformers reads, one that is set here, or one that is known to have no effect; any other is refused.
"""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig

from sparsedraft.base.errors import UserError
from sparsedraft.models.gguf import rope
from sparsedraft.models.gguf.header import Header, shown

Setter = Callable[[PreTrainedConfig, Header, Any], None]
Known = Setter | tuple[Any, ...]  # a tuple: the only values allowed, which the architecture has anyway

READ = frozenset(  # by transformers, for every architecture below
    {"context_length", "block_count", "embedding_length", "feed_forward_length", "vocab_size"}
    | {"attention.head_count", "attention.head_count_kv"}
    | {"attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"}
)


def _set(name: str) -> Setter:
    return lambda config, header, value: setattr(config, name, value)


def _nothing(config: PreTrainedConfig, header: Header, value: Any) -> None:
    """For keys without effect, and for settings that transformers takes from the tensors."""


def _sliding_window(config: PreTrainedConfig, header: Header, value: int) -> None:
    config.sliding_window = value or None  # 0: no window


def _head_dim(config: PreTrainedConfig, header: Header, value: int) -> None:
    if header.own("attention.value_length", value) != value:
        raise _refused(header, "attention.value_length", header.own("attention.value_length"))
    config.head_dim = value


HEADS: dict[str, Known] = {"attention.key_length": _head_dim, "attention.value_length": _nothing}
EXPERTS: dict[str, Known] = {
    "expert_count": _set("num_experts"),
    "expert_used_count": _set("num_experts_per_tok"),
    "expert_feed_forward_length": _set("moe_intermediate_size"),
    "expert_shared_feed_forward_length": _set("shared_expert_intermediate_size"),
}
OWN: dict[str, dict[str, Known]] = {  # by architecture: its keys beyond READ and those of the rotary embedding
    "llama": HEADS | {"expert_count": (0,), "expert_used_count": (0,)},
    "qwen2": HEADS,
    "qwen3": HEADS,
    "qwen2moe": HEADS | EXPERTS,
    "qwen3moe": HEADS | EXPERTS,
    "gemma2": HEADS
    | {
        "attention.sliding_window": _sliding_window,
        "attn_logit_softcapping": _set("attn_logit_softcapping"),
        "final_logit_softcapping": _set("final_logit_softcapping"),
    },
    "gemma3": HEADS
    | {
        "attention.sliding_window": _sliding_window,
        "attention.sliding_window_pattern": (6,),
        "final_logit_softcapping": _set("final_logit_softcapping"),
    },
    "phi3": HEADS | {"attention.sliding_window": _sliding_window},
    "starcoder2": HEADS,
    "stablelm": HEADS | {"use_parallel_residual": _nothing},  # transformers looks at the tensors instead
    "nemotron": HEADS,
    "gpt2": {"context_length": _set("n_positions")},
    "mamba": {
        **{f"ssm.{name}": _nothing for name in ("conv_kernel", "inner_size", "state_size", "time_step_rank")},
        "ssm.dt_b_c_rms": (False,),
    },
    "lfm2": {"shortconv.l_cache": _nothing},
}
NO_ROPE = frozenset({"gpt2", "mamba"})
LARGEST_MODELS = {"gemma2": 46, "gemma3": 62}  # the 27B's layers: they divide scores by another root (as llama.cpp)


def settle(config: PreTrainedConfig, header: Header) -> None:
    """Complete `config`, as transformers read it, with all settings of the file. UserError if that is impossible."""
    arch = header.architecture
    settings = OWN[arch]
    for key, value in header.keys.items():
        if not key.startswith(f"{arch}."):
            continue
        name = key.removeprefix(f"{arch}.")
        setting = settings.get(name)
        if isinstance(setting, tuple):
            if value not in setting:
                raise _refused(header, name, value)
        elif setting is not None:
            setting(config, header, value)
        elif name not in READ and not (name in rope.KEYS and arch not in NO_ROPE):
            raise _refused(header, name, value)
    if arch == "llama":
        if header.own("attention.key_length") is None:  # transformers takes the turned dimensions for the whole head
            config.head_dim = config.hidden_size // config.num_attention_heads
        config.attention_bias = "blk.0.attn_q.bias" in header.shapes
        config.mlp_bias = "blk.0.ffn_gate.bias" in header.shapes
    if arch in LARGEST_MODELS:
        whole = config.num_hidden_layers == LARGEST_MODELS[arch]
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if whole else config.head_dim
    window = header.own("attention.sliding_window")
    if (arch == "phi3" and window is None) or (arch == "gemma3" and not window):  # made by an old converter, or another
        raise _refused(header, "attention.sliding_window", window)
    if arch not in NO_ROPE:
        rope.set_rope(config, header)


def _refused(header: Header, name: str, value: Any) -> UserError:
    return UserError(
        f"model {header.path}: its {header.architecture}.{name} ({shown(value)}) has no place in transformers' "
        f"{header.architecture}, so it would be lost; take the model's original checkpoint."
    )
