"""The text of token ids: one rule wherever text is compared, shown or stored."""

from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # a decoder writes this for bytes that are not a whole character
LONGEST = 8  # after so many tokens without a complete character, their bytes count as invalid
TAIL = 16  # tokens before a text that say how it begins


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], special: bool = False) -> str:
    """`ids` as text; with `special`, special tokens are written out.

    `clean_up_tokenization_spaces` is off: it removes spaces that the model wrote (" ." in code, for example), and the
    cleaned part of a text may not be part of the cleaned text.
    """
    return str(tokenizer.decode([*ids], skip_special_tokens=not special, clean_up_tokenization_spaces=False))


class Detokenizer:
    """The text of a growing list of tokens, without the bytes of an incomplete character.

    `before` are the tokens in front of them. Their text is not shown, but some tokenizers write a token's leading space
    only inside a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._context = [*before]  # tokens that have been shown last; they are decoded again as context
        self._end = 0

    def more(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` add to those of the last call, which they continue."""
        new = [*tokens[self._end :]]
        if not new:
            return ""
        if special_ids(self.tokenizer).issuperset(new):  # special tokens have no text, and are no context for one
            self._end = len(tokens)
            return ""
        shown, new = self.text(self._context), new[: self._complete(new)]
        # The context becomes exactly the new tokens, since a run of byte tokens can only be decoded as a whole.
        added = self.text([*self._context, *new])[len(shown) :]
        if new:
            self._context, self._end = new, self._end + len(new)
        return added

    def _complete(self, new: list[int]) -> int:
        """How many of the `new` tokens to show: up to the last character that is complete, or certainly invalid."""
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
        """The text of `tokens`, if they came next, up to the first incomplete character."""
        text = self.text([*self._context, *tokens])[len(self.text(self._context)) :]
        return text.partition(BROKEN)[0]

    @property
    def pending(self) -> int:
        """The index of the first token whose text is not shown yet."""
        return self._end

    def text(self, tokens: Sequence[int]) -> str:
        """`tokens` as text, special ones left out."""
        return text_of(self.tokenizer, tokens)


def tail(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """The context of what follows `ids`: its last few tokens, from a whole character on, after any special token."""
    last, special = [*ids[-TAIL:]], special_ids(tokenizer)
    start = max((i + 1 for i, token in enumerate(last) if token in special), default=0)
    text = Detokenizer(tokenizer).text
    return next((last[i:] for i in range(start, len(last)) if not text(last[i:]).startswith(BROKEN)), [])


@lru_cache(maxsize=8)
def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that decoding leaves out."""
    return frozenset(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
