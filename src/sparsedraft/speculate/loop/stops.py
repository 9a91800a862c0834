"""Strings that end a sequence."""

from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from sparsedraft.models.tokenizers.detokenizer import text_of


class Stops:
    """Strings that end a sequence, looked for in the text of its newest tokens, token by token.

    A string that is a special token, which no text shows, is looked for as that token.
    The window is a fixed number of tokens before each token, so where a sequence stops depends on its tokens alone and
    not on how many of them came in one step.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        self.tokenizer, self.strings = tokenizer, [s for s in strings if s]
        special = _special(tokenizer)
        self._ids = {special[s] for s in self.strings if s in special}
        self.longest = max((len(s) for s in self.strings), default=0)  # characters
        self.window = max((len(s.encode()) for s in self.strings), default=0) + 8

    def first(self, tokens: Sequence[int], written: int, new: int) -> int | None:
        """Which of the last `new` of `tokens` (0-based) completes a stop string; the last `written` are the answer."""
        if not self.strings:
            return None
        start = len(tokens) - written
        for i in range(new):
            end = len(tokens) - new + i + 1
            if tokens[end - 1] in self._ids:
                return i
            text = text_of(self.tokenizer, tokens[max(start, end - self.window) : end])
            if any(s in text for s in self.strings):
                return i
        return None

    def cut(self, text: str) -> str:
        """`text` up to the first stop string."""
        places = [place for s in self.strings if (place := text.find(s)) >= 0]
        return text[: min(places, default=len(text))]


@lru_cache(maxsize=8)
def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The special tokens by their strings. (The whole vocabulary would take a tenth of a second for each request.)"""
    return {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
