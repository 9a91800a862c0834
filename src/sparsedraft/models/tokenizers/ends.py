"""The ids that end a text: one rule for the whole project."""

from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsedraft.base.jsonfiles import read_object
from sparsedraft.models.config.token_ids import token_ids
from sparsedraft.models.tokenizers import templates


def end_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a text of the checkpoint in `folder`.

    These are the `eos_token_id`, one or a list, of its tokenizer, its config.json (of a wrapper: also its text model's)
    and its generation_config.json. UserError for a file that cannot be read.
    """
    ids: set[int] = set(token_ids(tokenizer.eos_token_id))
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            fields = read_object(folder / name)
            text = fields.get("text_config")
            for part in (fields, text if isinstance(text, dict) else {}):
                ids |= set(token_ids(part.get("eos_token_id")))
    return frozenset(ids)


def end_ids_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a text of a model in memory, by its tokenizer, its config and its generation config."""
    configs = (tokenizer, model.config.get_text_config(), model.config, model.generation_config)
    return frozenset(token for config in configs for token in token_ids(getattr(config, "eos_token_id", None)))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that ends an assistant's turn, as a list of one: the chat template's, else EOS; else an empty list."""
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": templates.MARK}]
    try:
        text = templates.render(tokenizer, chat) if tokenizer.chat_template else ""
    except TemplateError:
        text = ""
    ids = tokenizer(text.partition(templates.MARK)[2].lstrip(), add_special_tokens=False)["input_ids"]
    if ids and ids[0] in tokenizer.get_added_vocab().values():
        return [int(ids[0])]
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
