"""The text of a sequence in another tokenizer's ids, step by step and around the seam only.

Nothing here can make the output wrong: ids that do not fit only make for drafts that are not accepted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from sparsedraft.models.tokenizers.texts import text_of

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character yet
LONGEST = 8  # tokens without a complete character, from which on their bytes are taken for broken
BEHIND = 24  # characters before the seam that are encoded again
CONTEXT = 12  # and as many before those, so that no word begins in the middle
SEAM = 48  # characters before new text that are encoded with it
TAIL = 16  # tokens before a text that say how it begins


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


@dataclass(frozen=True)
class Piece:
    """A token, and where in the text it lies (characters). Tokens that share a character may have the same place."""

    id: int
    start: int
    end: int


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, offset: int = 0) -> list[Piece]:
    """`text` as tokens with their places, `offset` added; no special tokens are put in or recognised."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
    pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return [Piece(token, start + offset, end + offset) for token, (start, end) in pairs]


def inner(tokenizer: PreTrainedTokenizerBase, text: str, offset: int = 0) -> list[Piece]:
    """`pieces` of a text that goes on in the middle of another: with no space put in before it."""
    anchor = "a" if text[:1].isspace() else "\n"  # what a token hardly ever spans together with the text
    found = pieces(tokenizer, anchor + text, offset - len(anchor))
    return [p for p in found if p.start >= offset] if clean(found, offset) else pieces(tokenizer, text, offset)


def clean(found: Sequence[Piece], place: int) -> bool:
    """Whether no token lies on both sides of `place`."""
    return not any(p.start < place < p.end for p in found)


class Retokenizer:
    """The ids of one growing answer under `drafter`'s tokenizer, behind the ids of the prompt as the drafter sees it.

    `before`: the prompt as the target sees it.
    """

    def __init__(
        self,
        target: PreTrainedTokenizerBase,
        drafter: PreTrainedTokenizerBase,
        prompt_ids: Sequence[int],
        before: Sequence[int] = (),
    ) -> None:
        self.drafter, self.prompt_ids = drafter, list(prompt_ids)
        context = tail(target, before)
        self.seen = Detokenizer(target, context)
        self.text = ""
        self._before = self.seen.text(context)
        self._lead = Detokenizer(drafter).text(tail(drafter, prompt_ids))
        self.answer: list[Piece] = []

    def ids(self, answer: Sequence[int]) -> list[int]:
        """The ids up to the last complete character of `answer` (target ids), a continuation of the last call's."""
        if new := self.seen.more(answer):
            self.answer = spliced(self.drafter, self.answer, self.text, new, self._lead)
            self.text += new
        return [*self.prompt_ids, *(piece.id for piece in self.answer)]

    @property
    def last(self) -> str:
        """The last characters before what comes next, as the target wrote them."""
        return (self.text if len(self.text) >= SEAM else self._before + self.text)[-SEAM:]

    def begun(self, answer: Sequence[int]) -> list[int]:
        """The last of `answer`, with the first bytes of a character that is not complete."""
        special = special_ids(self.seen.tokenizer)
        return [token for token in answer[self.seen.pending :] if token not in special]


def spliced(tokenizer: PreTrainedTokenizerBase, old: list[Piece], text: str, new: str, lead: str = "") -> list[Piece]:
    """The tokens of `text` + `new`, where `old` are those of `text`: only what is near the seam is encoded again.

    Old and new tokens are joined where a token ends in both; where they do so nowhere, at the seam itself. `lead` is
    what stands before the text and keeps its own tokens.
    """
    keep = max(0, len(text) - BEHIND)
    start = next((p.end for p in reversed(old) if p.end <= keep - CONTEXT), -len(lead))  # at an old token's end
    before = text[start:] if start >= 0 else lead + text
    again = pieces(tokenizer, before + new, start)
    near = [*takewhile(lambda p: p.end > keep, reversed(old))]
    places = sorted({p.start for p in again if keep <= p.start <= len(text)})
    joint = next((x for x in places if clean(again, x) and clean(near, x)), None)
    if joint is None:
        return [*old, *inner(tokenizer, new, len(text))]
    return [*(p for p in old if p.end <= joint), *(p for p in again if p.start >= joint)]
