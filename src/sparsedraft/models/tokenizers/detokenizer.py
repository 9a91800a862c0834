"""The text of token ids: one rule, wherever text is looked at, shown or kept."""

from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character yet
LONGEST = 8  # tokens without a complete character, from which on their bytes are taken for broken
TAIL = 16  # tokens before a text that say how it begins


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], special: bool = False) -> str:
    """`ids` as text, letter by letter; with `special`, special tokens are written out.

    A tokenizer's `clean_up_tokenization_spaces` is left aside: it takes spaces away that the model wrote (" ." in code,
    for example), and what it makes of a part of a text is not a part of what it makes of the whole.
    """
    return str(tokenizer.decode([*ids], skip_special_tokens=not special, clean_up_tokenization_spaces=False))


class Detokenizer:
    """The text that more and more tokens make, without the bytes of a character that is not complete.

    `before`: tokens in front of them, whose text is not shown, as a space may be written in the middle of a text only.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._context = [*before]  # tokens that have been shown last; they are decoded again as context
        self._end = 0

    def more(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` add to what they were in the last call, of which they are a continuation."""
        new = [*tokens[self._end :]]
        if not new:
            return ""
        if special_ids(self.tokenizer).issuperset(new):  # no text, and no context of one
            self._end = len(tokens)
            return ""
        shown, new = self.text(self._context), new[: self._complete(new)]
        # All that is new becomes the context, and no more or less: runs of byte tokens are decoded as a whole only.
        added = self.text([*self._context, *new])[len(shown) :]
        if new:
            self._context, self._end = new, self._end + len(new)
        return added

    def _complete(self, new: list[int]) -> int:
        """How many of the `new` tokens to show: up to the last character that is complete, or broken for good."""
        least = len(new) - 3  # more tokens than that cannot have begun a character
        for n in range(len(new), max(0, least - 1), -1):
            if not self.text([*self._context, *new[:n]]).endswith(BROKEN):
                return n
        if len(new) < LONGEST:
            return 0
        whole = self.text([*self._context, *new])
        broken = (n for n in range(least, 0, -1) if whole.startswith(self.text([*self._context, *new[:n]])))
        return next(broken, 0)

    def whole(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` in this place up to the first character that is not complete."""
        text = self.text([*self._context, *tokens])[len(self.text(self._context)) :]
        return text.partition(BROKEN)[0]

    @property
    def pending(self) -> int:
        """From which token on the text has not been shown."""
        return self._end

    def text(self, tokens: Sequence[int]) -> str:
        """`tokens` as text, special ones left out."""
        return text_of(self.tokenizer, tokens)


def tail(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """The last few of `ids`, from a whole character on, behind the last special token: the context of what follows."""
    last, special = [*ids[-TAIL:]], special_ids(tokenizer)
    start = max((i + 1 for i, token in enumerate(last) if token in special), default=0)
    text = Detokenizer(tokenizer).text
    return next((last[i:] for i in range(start, len(last)) if not text(last[i:]).startswith(BROKEN)), [])


@lru_cache(maxsize=8)
def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that decoding leaves out."""
    return frozenset(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
