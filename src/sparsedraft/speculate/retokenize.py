"""The text of a sequence in another tokenizer's ids, step by step and around the seam only.

Nothing here can make the output wrong: ids that do not fit only make for drafts that are not accepted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character yet
BEHIND = 24  # characters before the seam that are encoded again
CONTEXT = 12  # and as many before those, so that no word begins in the middle


class Detokenizer:
    """The text that more and more tokens make, without the bytes of a character that is not complete."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._start = self._end = 0  # tokens [start, end) have been shown; they are decoded again as context

    def more(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` add to what they were in the last call, of which they are a continuation."""
        shown = self.text(tokens[self._start : self._end])
        whole = self.text(tokens[self._start :])
        if whole.endswith(BROKEN) or len(whole) <= len(shown):
            return ""
        self._start, self._end = self._end, len(tokens)
        return whole[len(shown) :]

    @property
    def pending(self) -> int:
        """From which token on the text has not been shown."""
        return self._end

    def text(self, tokens: Sequence[int]) -> str:
        """`tokens` as text, special ones left out."""
        return str(self.tokenizer.decode([*tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False))


@dataclass(frozen=True)
class Piece:
    """A token, and where in the text it lies (characters)."""

    id: int
    start: int
    end: int


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, offset: int = 0) -> list[Piece]:
    """`text` as tokens with their places, `offset` added; no special tokens are put in or recognised."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
    pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return [Piece(token, start + offset, end + offset) for token, (start, end) in pairs]


class Retokenizer:
    """The ids of one growing answer under `drafter`'s tokenizer, behind the ids of the prompt as the drafter sees it."""

    def __init__(
        self, target: PreTrainedTokenizerBase, drafter: PreTrainedTokenizerBase, prompt_ids: Sequence[int]
    ) -> None:
        self.drafter, self.prompt_ids = drafter, list(prompt_ids)
        self.seen = Detokenizer(target)
        self.text = ""
        self._pieces: list[Piece] = []

    def ids(self, answer: Sequence[int]) -> list[int]:
        """The ids up to the last complete character of `answer` (target ids), a continuation of the last call's."""
        if new := self.seen.more(answer):
            self._pieces = spliced(self.drafter, self._pieces, self.text, new)
            self.text += new
        return [*self.prompt_ids, *(piece.id for piece in self._pieces)]


def spliced(tokenizer: PreTrainedTokenizerBase, old: list[Piece], text: str, new: str) -> list[Piece]:
    """The tokens of `text` + `new`, where `old` are those of `text`: only what is near the seam is encoded again.

    Old and new tokens are joined at a character where tokens end in both; where there is none, at the seam itself.
    """
    keep = max(0, len(text) - BEHIND)
    start = max(0, keep - CONTEXT)
    start = max((p.end for p in old if p.end <= start), default=0)  # never in the middle of an old token
    again = pieces(tokenizer, text[start:] + new, start)
    ends = {0, *(p.end for p in old)}
    joint = next((p.start for p in again if p.start >= (keep if start else 0) and p.start in ends), None)
    if joint is None or joint > len(text):
        return [*old, *pieces(tokenizer, new, len(text))]
    return [*(p for p in old if p.end <= joint), *(p for p in again if p.start >= joint)]
