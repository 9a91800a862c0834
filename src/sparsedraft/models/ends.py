"""The ids that end a text: one rule for the whole project."""

from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sparsedraft.base.sidefiles import read_object


def ends(folder: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a text of the checkpoint in `folder`: those that its tokenizer, its config.json (a text model
    inside a wrapper: both) and its generation_config.json name as `eos_token_id`, one or a list.

    UserError for a file that cannot be read.
    """
    found: set[int] = set(_ids(tokenizer.eos_token_id))
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            fields = read_object(folder / name)
            text = fields.get("text_config")
            for part in (fields, text if isinstance(text, dict) else {}):
                found |= set(_ids(part.get("eos_token_id")))
    return frozenset(found)


def _ids(value: object) -> Iterable[int]:
    """The token ids in a field that holds one, a list of them, or nothing; what is none is left out."""
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
