"""A transformers rotary embedding as the keys and the tensor of a GGUF file."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig

from sparsedraft.base.errors import UserError

COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}  # "type" is the older name of "rope_type"
OWN = {  # by kind: the parameters that have a place in a file
    "default": set(),
    "linear": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}
FACTORS = {"llama"}  # of llama.cpp's architectures those that read rope_freqs.weight
YARN = {"attention_factor": "attn_factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow"}


def rope_keys(ref: str, config: PretrainedConfig, arch: str) -> dict[str, Any]:
    """The keys of the rotary embedding, without the architecture's name.

    UserError, with the model's name `ref`, for one that llama.cpp's `arch` cannot express.
    """
    rope: dict[str, Any] = config.rope_parameters
    kind, given = rope.get("rope_type", "default"), {name for name, value in rope.items() if value is not None}
    if kind not in OWN or (kind == "llama3" and arch not in FACTORS):
        raise _refused(ref, arch, f"rope_type {kind}")
    if unknown := sorted(given - COMMON - OWN[kind]):
        raise _refused(ref, arch, f"{unknown[0]} {str(rope[unknown[0]])[:80]}")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise _refused(ref, arch, f"partial_rotary_factor {rope['partial_rotary_factor']}")
    if lacking := sorted({"rope_theta", *OWN[kind]} - given - set(YARN)):
        raise _refused(ref, arch, f"no {lacking[0]}")
    keys: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"])}
    if kind in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        keys |= {f"rope.scaling.yarn_{key}": float(rope[name]) for name, key in YARN.items() if name in given}
    return keys


def rope_factors(config: PretrainedConfig) -> NDArray[np.float32] | None:
    """What the frequencies of Llama 3's scaling are divided by, float32 [head / 2]; None of another rotary embedding.

    Computed in float32, step by step as llama.cpp's converter does, so that the bits are the same.
    """
    rope: dict[str, Any] = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, head, 2, dtype=torch.float32) / head))
    wavelengths = 2 * math.pi / frequencies
    factor, low, high = (rope[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    length = rope["original_max_position_embeddings"]
    smooth = (length / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    short, long = wavelengths < length / high, wavelengths > length / low
    whole = torch.where(short, 1.0, torch.where(long, float(factor), between))
    return whole.numpy().astype(np.float32)


def _refused(ref: str, arch: str, what: str) -> UserError:
    return UserError(f"model {ref} has a rotary embedding with {what}, which llama.cpp's {arch} does not have.")
