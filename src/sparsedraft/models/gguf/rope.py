"""Rotary embeddings of a GGUF file, as transformers' `rope_parameters`: from its keys, and from its tensors of factors.

llama.cpp turns pair i of a head by position * base^(-2i/n) / factor_i, where n is the count of turned dimensions.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sparsedraft.base.errors import UserError
from sparsedraft.models.gguf.header import Header, shown
from sparsedraft.models.gguf.llama3 import RELATIVE, TOLERANCE, parameters_of, short

FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = frozenset({FREQUENCIES, LONG, SHORT})
PARTIAL = frozenset({"phi3", "stablelm", "nemotron"})  # architectures that may turn a part of a head only
KEYS = frozenset(
    "rope." + name
    for name in (
        *("dimension_count", "dimension_count_swa", "freq_base", "freq_base_swa", "scale_linear"),
        *("scaling.type", "scaling.factor", "scaling.original_context_length", "scaling.finetuned"),
        *("scaling.attn_factor", "scaling.yarn_attn_factor", "scaling.yarn_ext_factor", "scaling.yarn_log_multiplier"),
        *("scaling.yarn_beta_fast", "scaling.yarn_beta_slow"),
    )
)
IDLE = {  # with these values the keys have no effect, whatever the scaling
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.attn_factor": 1.0,
}
BASE = 10_000.0  # llama.cpp's, where the file names none


def set_rope(config: PreTrainedConfig, header: Header) -> None:
    """Set `config`'s rotary embedding to the file's. UserError for one that transformers cannot express."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dims = header.own("rope.dimension_count", head)
    base: dict[str, Any] = {"rope_theta": short(header.own("rope.freq_base", BASE))}
    if header.architecture in PARTIAL:
        base["partial_rotary_factor"] = dims / head
    elif dims != head:
        raise _refused(header, f"rope.dimension_count is {dims} of {head}, and this architecture turns whole heads")
    full = base | _scaling(header, config, base["rope_theta"], dims)
    if header.architecture == "gemma3":  # the scaling is that of the layers that see everything
        local = {"rope_type": "default", "rope_theta": short(header.own("rope.freq_base_swa", BASE))}
        config.rope_parameters = {"full_attention": full, "sliding_attention": local}
    else:
        for name, other in (("rope.freq_base_swa", "rope.freq_base"), ("rope.dimension_count_swa", None)):
            value = header.own(name)
            if value is not None and value != (header.own(other, BASE) if other else dims):
                raise _refused(header, f"{name} is {value}, another than that of the other layers")
        config.rope_parameters = full
    if "original_max_position_embeddings" in full and hasattr(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = full["original_max_position_embeddings"]
    _check(config, header, full, dims)


def _scaling(header: Header, config: PreTrainedConfig, base: float, dims: int) -> dict[str, Any]:
    """`rope_type` and its parameters."""
    kind = header.own("rope.scaling.type")
    factor = short(header.own("rope.scaling.factor", header.own("rope.scale_linear", 1.0)) or 1.0)
    for name, value in (("freq_base", base), ("scaling.factor", factor)):
        if value <= 0:
            raise _refused(header, f"rope.{name} is {value}")
    if kind is None:
        kind = "linear" if factor != 1 else "none"
    original = header.own("rope.scaling.original_context_length", config.max_position_embeddings)
    idle = dict(IDLE)
    factors, long, brief = (header.floats(name) for name in (FREQUENCIES, LONG, SHORT))
    found: dict[str, Any]
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise _refused(header, f"rope.scaling.type {shown(kind)} is none of none, linear, yarn and longrope")
    if long is not None or brief is not None or kind == "longrope":
        if long is None or brief is None or factors is not None or kind == "yarn" or (kind == "linear" and factor != 1):
            raise _refused(header, f"rope.scaling.type {kind} does not go with its tensors of rope factors")
        idle.pop("rope.scaling.attn_factor")
        found = _longrope(header, config, original, [short(f) for f in long], [short(f) for f in brief])
    elif factors is not None and not (kind == "none" or (kind == "linear" and factor == 1)):
        raise _refused(header, f"rope.scaling.type {kind} and the tensor {FREQUENCIES} together")
    elif factors is not None:
        recovered = (
            parameters_of(factors.astype(np.float64), base, dims, original) if len(factors) == dims // 2 else None
        )
        if recovered is None:
            raise _refused(header, f"no kind of scaling that is known gives the factors in {FREQUENCIES}")
        found = recovered
    elif kind == "none" or factor == 1:
        found = {"rope_type": "default"}
    elif kind == "linear":
        found = {"rope_type": "linear", "factor": factor}
    else:
        found = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        for name, key in (("attention_factor", "attn_factor"), ("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")):
            if (value := header.own(f"rope.scaling.yarn_{key}")) is not None:
                found[name] = short(value)
    for name, value in idle.items():
        if header.own(name, value) != value:
            what = f"{name} is {shown(header.own(name))}"
            raise _refused(header, f"{what}, which transformers' {found['rope_type']} has not")
    return found


def _longrope(
    header: Header, config: PreTrainedConfig, original: int, long: list[float], brief: list[float]
) -> dict[str, Any]:
    if (attention := header.own("rope.scaling.attn_factor")) is None:
        raise _refused(header, "it has long rope factors without rope.scaling.attn_factor")
    parameters: dict[str, Any] = {"rope_type": "longrope", "long_factor": long, "short_factor": brief}
    parameters["original_max_position_embeddings"] = original
    ratio = config.max_position_embeddings / original
    usual = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    if abs(attention / usual - 1) > TOLERANCE:
        parameters["attention_factor"] = short(attention)
    return parameters


def _check(config: PreTrainedConfig, header: Header, full: dict[str, Any], dims: int) -> None:
    """UserError where transformers' frequencies for these parameters differ from those of the file's factors."""
    if full["rope_type"] not in ("llama3", "linear", "longrope"):
        return
    layer = "full_attention" if header.architecture == "gemma3" else None
    plain = (1 / full["rope_theta"] ** (torch.arange(0, dims, 2).float() / dims)).double().numpy()
    for name, length in ((FREQUENCIES, None), (SHORT, 1), (LONG, full.get("original_max_position_embeddings", 0) + 1)):
        if (factors := header.floats(name)) is not None:
            frequencies, _ = ROPE_INIT_FUNCTIONS[full["rope_type"]](config, None, seq_len=length, layer_type=layer)
            if len(frequencies) != len(factors) or not _near(frequencies.numpy(), plain / factors):
                raise _refused(header, f"transformers' frequencies for {full['rope_type']} are not those of {name}")


def _near(one: NDArray[Any], other: NDArray[Any]) -> bool:
    apart = np.abs(one - other)
    return bool((apart <= TOLERANCE).all() and (apart <= RELATIVE * np.abs(other)).all())


def _refused(header: Header, what: str) -> UserError:
    return UserError(
        f"model {header.path}: its rotary embedding cannot be converted ({what}); take the original checkpoint."
    )
