"""Checkpoints whose weights a quantiser has packed: how to recognise them, and what they can be used for.

Where transformers and the quantiser's library can run such a model, it can be a target or a drafter as it is. Commands
that change or rewrite weights (prune, drop-layers, finetune, pack) need them as plain numbers. Packed folders of
sparsedraft do not count as quantised here: the native runtime reads them.
"""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer

from sparsedraft.base.errors import UserError, first_line
from sparsedraft.models.shards import Shards

OWN = "sparsedraft"  # the method of packed folders
KEYS = ("quantization_config", "compression_config")  # where a config.json says it; the second is an older name
PACKED = {  # tensors that only quantisers write, by the end of their names
    "qweight": "GPTQ or AWQ", "qzeros": "GPTQ or AWQ", "weight_packed": "compressed-tensors",
    "bitmask": "compressed-tensors, sparse", "compressed": "compressed-tensors, sparse", "quant_map": "bitsandbytes",
    "absmax": "bitsandbytes", "SCB": "bitsandbytes", "weight_scale_inv": "FP8", "weight_scale": "8 bits",
}  # fmt: skip
SCALES = ("scales", "input_scale", "weight_global_scale", "input_global_scale")  # beside packed or plain weights
FLOATS = ("F64", "F32", "F16", "BF16")
FLOATS8 = ("F8_E4M3", "F8_E5M2")  # numbers up to a scale
NARROW = ("I8", "U8", *FLOATS8, "F8_E8M0", "F4")  # these types need a scale to become numbers


def method_of(config: PretrainedConfig) -> str | None:
    """The format that config.json names, such as "compressed-tensors, sparse-24-bitmask"; None for plain weights."""
    for holder in (config, config.get_text_config()):
        for key in KEYS:
            entry: Any = getattr(holder, key, None)
            fields = entry if isinstance(entry, dict) else vars(entry) if entry is not None else None
            if fields is not None:
                return _named(fields)
    return None


def _named(fields: dict[str, Any]) -> str | None:
    method = fields.get("quant_method")
    method = str(getattr(method, "value", method or "a format without a name"))
    if method == OWN:
        return None
    sparse = fields.get("sparsity_config")
    more = [
        str(part)[:40]
        for part in (fields.get("format"), sparse.get("format") if isinstance(sparse, dict) else None)
        if part and part != "dense"
    ]
    if method == "bitsandbytes":
        more = ["4-bit" if fields.get("load_in_4bit") or fields.get("_load_in_4bit") else "8-bit"]
    return ", ".join([method[:40], *more])


def is_part(name: str, shards: Shards) -> bool:
    """Whether a tensor is a quantiser's code, scale or mask, not a matrix of plain numbers."""
    return name.rpartition(".")[2] in {*PACKED, *SCALES} or shards.types[name] not in (*FLOATS, *FLOATS8)


def format_of(config: PretrainedConfig, shards: Shards) -> str | None:
    """The format of a quantised checkpoint, by its config or else its tensors; None for plain weights."""
    if getattr(config, KEYS[0], None) is not None and method_of(config) is None:  # a packed folder of ours
        return None
    if method := method_of(config):
        return method
    for name, kind in shards.types.items():
        if known := PACKED.get(name.rpartition(".")[2]):
            return f"{known}, by its tensor {name}"
        if kind in NARROW and name.endswith(".weight"):
            return f"{kind}, by its tensor {name}"
    return None


def check_plain(ref: str | Path, config: PretrainedConfig, shards: Shards, command: str) -> None:
    """Raise UserError for a quantised checkpoint, which `command` cannot take."""
    if method := format_of(config, shards):
        raise UserError(
            f"model {ref} is quantised ({method}), and {command} needs weights that are plain numbers: give the "
            "checkpoint that it was made from."
        )


def check_runs(ref: str | Path, config: PretrainedConfig, shards: Shards, device: str = "cpu") -> str | None:
    """The format of a quantised checkpoint that transformers can unpack here, None for plain weights.

    Raises UserError where transformers would take the codes for plain numbers, and where a library is missing.
    """
    method = format_of(config, shards)
    if method is None:
        return None
    fields = getattr(config, KEYS[0], None)
    as_dict = fields if isinstance(fields, dict) or fields is None else fields.to_dict()
    if fields is None or not AutoHfQuantizer.supports_quant_method(as_dict):
        raise UserError(
            f"model {ref} is quantised ({method}), and transformers would read it as plain numbers, because its "
            f"config.json does not say so in {KEYS[0]}, or of a kind that is not known: give the checkpoint that it "
            "was made from."
        )
    try:
        AutoHfQuantizer.from_config(fields, pre_quantized=True).validate_environment(device_map={"": device})
    except (ImportError, ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise unable(ref, method, first_line(error)) from None
    return method


def unable(ref: str | Path, kind: str, reason: str) -> UserError:
    """The error for a quantised model `ref` that transformers cannot run."""
    return UserError(
        f"model {ref} is quantised ({kind}) and cannot be run here ({reason.rstrip('. ')}): mend that, or give the "
        "checkpoint that it was made from."
    )
