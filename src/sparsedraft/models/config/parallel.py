"""The token that stands for what is not written yet, in checkpoints that draft several tokens in one pass (PARD).

config.json names it, as vLLM's `parallel_drafting` reads it. Such a checkpoint can also draft token by token.
"""

from typing import Any

from sparsedraft.base.errors import UserError

FIELDS = ("pard_token", "ptd_token_id")  # the first is what AMD's checkpoints have, and what is written here


def mask_token_of(config: Any, model: object) -> int | None:
    """The mask token of the checkpoint that `config` describes, a config of transformers or config.json's fields.

    None where it drafts token by token only. UserError, naming `model`, for what is no id of its vocabulary.
    """
    fields = config if isinstance(config, dict) else vars(config)
    name = next((name for name in FIELDS if fields.get(name) is not None), None)
    if name is None:
        return None
    token, rows = fields[name], fields.get("vocab_size")
    if type(token) is not int or token < 0 or (type(rows) is int and token >= rows):
        raise UserError(
            f"model {model} has {name} {token!r:.40} in config.json, which is no token of its vocabulary of {rows}: "
            "mend it, or leave it out."
        )
    return token


def note_mask_token(config: Any, token: int | None) -> None:
    """Let `config`, of transformers, name `token`; None: no token."""
    for name in FIELDS:
        vars(config).pop(name, None)
    if token is not None:
        setattr(config, FIELDS[0], token)
