"""Reads a tokenizer from its files, which are checked first."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError
from sparsedraft.models.config import schemas
from sparsedraft.models.config.remote_code import refuse_tokenizer_code


def read_tokenizer(folder: Path, what: str, mend: str) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, tried on a text. UserError, naming `what` and the `mend`, where none can be read."""
    schemas.check_tokenizer(folder)
    refuse_tokenizer_code(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.decode(tokenizer("a b")["input_ids"])
    except BaseException as error:  # tokenizers raises plain Exceptions, and panics, which are not Exceptions
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip().splitlines() or ["no tokenizer files"])[0]
        raise UserError(f"{what} has no tokenizer that can be read ({reason}): {mend}.") from None
    return tokenizer
