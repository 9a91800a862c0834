"""Code inside a checkpoint (remote code) is never run; a checkpoint that needs it is refused."""

import re
from collections.abc import Iterable
from pathlib import Path

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object


def refuse_model_code(folder: Path) -> None:
    """UserError where config.json names classes of code in the folder that transformers does not have.

    Where transformers has classes of the same names (it adopted the model later), the model is loaded with these.
    """
    fields = read_object(folder / "config.json")
    family, auto_map = str(fields.get("model_type")), fields.get("auto_map")
    if family not in CONFIG_MAPPING:
        for name in _named(auto_map, ("AutoModelForCausalLM", "AutoConfig")):
            raise _refused(folder, "model", name)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(family, ())
    known = {_letters(name) for name in ([causal] if isinstance(causal, str) else causal)}
    for name in _named(auto_map, ("AutoModelForCausalLM",)):
        if _letters(name) not in known:
            raise _refused(folder, "model", name)


def refuse_tokenizer_code(folder: Path) -> None:
    """UserError where tokenizer_config.json, or else config.json, names a tokenizer class that transformers lacks."""
    file = folder / "tokenizer_config.json"
    fields = read_object(file) if file.is_file() else {}
    auto_map = fields.get("auto_map")
    if not auto_map and not _has_tokenizer(str(fields.get("tokenizer_class"))) and (folder / "config.json").is_file():
        auto_map = read_object(folder / "config.json").get("auto_map")
    for name in _named(auto_map, ("AutoTokenizer",)):
        if not _has_tokenizer(name):
            raise _refused(folder, "tokenizer", name)


def _has_tokenizer(name: str) -> bool:
    """Whether transformers has a tokenizer of this class, fast or not."""
    short = name.removesuffix("Fast")
    return any(map(tokenizer_class_from_name, (name, short, f"{short}Fast")))


def _letters(name: str) -> str:
    """A class's name in lower-case letters and digits: MPTForCausalLM equals MptForCausalLM."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _named(auto_map: object, kinds: Iterable[str]) -> list[str]:
    """The classes that an auto_map such as {"AutoConfig": "owner/name--module.Class"} names for `kinds`.

    A tokenizer's entry is a list of classes. In older files that list is the whole map.
    """
    entries = auto_map if isinstance(auto_map, dict) else {"AutoTokenizer": auto_map}
    entries_of_kinds = [entries.get(kind) for kind in kinds]
    values = [value for entry in entries_of_kinds for value in (entry if isinstance(entry, list) else [entry])]
    return [value.rpartition(".")[2] for value in values if isinstance(value, str)]


def _refused(folder: Path, what: str, name: str) -> UserError:
    return UserError(
        f"model {folder} needs code of its own for its {what} ({name} in auto_map), and such code is never run: give a "
        "checkpoint that transformers loads by itself."
    )
