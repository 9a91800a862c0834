"""Reading rows back: whether token ids belong to a tokenizer, for data that are stored without one."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.detokenizer import text_of

ANSWERS = 0.9  # of the rows must match: answers cut inside a character, or with special tokens, read differently


def reads_back(rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the ids in `rows` (keys messages, prompt_ids, answer_ids, as in a data folder) spell their messages.

    The tokenizer's template must reproduce the prompt ids of every row, and its decoder the text of nearly all answers,
    apart from spaces at both ends.
    """
    count = right = 0
    try:
        for row in rows:
            *before, answer = row["messages"]
            ids = row["answer_ids"]
            if templates.chat_ids(tokenizer, before) != row["prompt_ids"] or max(ids, default=0) >= len(tokenizer):
                return False
            text = text_of(tokenizer, ids)
            right += text.strip() == answer["content"].strip()
            count += 1
    except UserError:  # no chat template, or one that refuses these conversations
        return False
    return count > 0 and right >= ANSWERS * count
