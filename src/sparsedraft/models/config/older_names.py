"""Older names of config fields, for readers such as transformers 4, mlx-lm and serving engines.

transformers 5 renamed some fields. A reader that misses the old name silently takes a default (a rope base of 10,000,
for example). So every checkpoint is written with the old names beside the new ones; readers of the new names are not
affected.
"""

import json
from pathlib import Path
from typing import Any

from sparsedraft.base.jsonfiles import read_object

THETA, PARTIAL = "rope_theta", "partial_rotary_factor"
OLD_NAMES = {  # of the base and of the rotated share of a head, where a family has its own
    "gpt_neox": ("rotary_emb_base", "rotary_pct"),
    "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct"),
}
LOCAL_NAMES = {  # of the bases of full and of sliding attention, in families with two
    "gemma3_text": (THETA, "rope_local_base_freq"),
    "gemma3n_text": (THETA, "rope_local_base_freq"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
    "olmo3": (THETA, THETA),
}
RENAMED = {"qwen3_moe": {"num_local_experts": "num_experts"}}  # other fields
PATTERNED = ("gemma3_text", "cohere2")  # every n-th layer attends to all; only newer readers take a list
ONLY = {"phi3": ("short_factor", "long_factor")}  # of a scaling; this family refuses all others


def with_older_names(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of the fields of a config.json, with the older names of those that transformers 5 renamed.

    Where `config` has a value under both names, the new name's value wins.
    """
    result = {
        key: with_older_names(value) if key == "text_config" and isinstance(value, dict) else value
        for key, value in config.items()
    }
    family = str(config.get("model_type"))
    for new, old in {"dtype": "torch_dtype", **RENAMED.get(family, {})}.items():
        if new in config:
            result[old] = config[new]
    if family in PATTERNED and isinstance(config.get("layer_types"), list):
        result["sliding_window_pattern"] = _pattern(config["layer_types"])
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return result
    if not any(isinstance(value, dict) for value in rope.values()):
        return result | _rope(rope, family)
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    if family not in LOCAL_NAMES or not isinstance(full, dict) or not isinstance(sliding, dict):
        return result  # older readers do not know this family
    of_full, of_sliding = LOCAL_NAMES[family]
    result |= _rope(full, family) | {of_sliding: sliding.get(THETA), of_full: full.get(THETA)}
    return {key: value for key, value in result.items() if key != THETA or of_full == THETA}


def _pattern(layer_types: list[str]) -> int | None:
    """The n with full attention in every n-th layer and sliding attention in the rest, as `layer_types` says.

    None where there is no such n (layers were dropped): older readers then stop instead of reading the model wrongly.
    """
    full = [kind == "full_attention" for kind in layer_types]
    counts = range(1, len(full) + 2)
    return next((n for n in counts if full == [(i + 1) % n == 0 for i in range(len(full))]), None)


def _rope(rope: dict[str, Any], family: str) -> dict[str, Any]:
    """One rotary embedding under the older names."""
    theta, partial = OLD_NAMES.get(family, (THETA, PARTIAL))
    fields = {theta: rope[THETA]} if rope.get(THETA) is not None else {}
    if rope.get(PARTIAL) is not None:
        fields[partial] = rope[PARTIAL]
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling = {key: value for key, value in rope.items() if key not in (THETA, PARTIAL, "type", "rope_type")}
    if family in ONLY:
        scaling = {key: scaling[key] for key in ONLY[family] if key in scaling}
    named = {"type": kind} if family in ONLY else {"type": kind, "rope_type": kind}
    return {**fields, "rope_scaling": None if kind == "default" else named | scaling}


def tokenizer_with_older_names(fields: dict[str, Any]) -> dict[str, Any]:
    """A copy of the fields of a tokenizer_config.json, class and special tokens as transformers 4 has them."""
    result = dict(fields)
    if fields.get("tokenizer_class") == "TokenizersBackend":
        result["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(fields.get("extra_special_tokens"), list):
        result["additional_special_tokens"] = result.pop("extra_special_tokens")
    return result


def complete(folder: Path) -> None:
    """Put the older names into config.json and tokenizer_config.json of the checkpoint in `folder`.

    A file that has them already stays as it is, byte for byte. UserError for one that cannot be read.
    """
    for name, with_names in (("config.json", with_older_names), ("tokenizer_config.json", tokenizer_with_older_names)):
        file = folder / name
        if file.is_file():
            fields = read_object(file)
            if (completed := with_names(fields)) != fields:
                file.write_text(json.dumps(completed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
