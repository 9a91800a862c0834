"""A growing text in another tokenizer's ids: each step encodes only the text around the seam again.

No mistake here can make the output wrong: other ids only lead to drafts that are rejected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from sparsedraft.models.tokenizers.detokenizer import Detokenizer, special_ids, tail

BEHIND = 24  # characters before the seam that are encoded again
CONTEXT = 12  # and as many before those, so that no word begins in the middle
SEAM = 48  # characters before new text that are encoded with it


@dataclass(frozen=True)
class Piece:
    """A token and its place in the text, in characters. Tokens that share a character may have the same place."""

    id: int
    start: int
    end: int


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, offset: int = 0) -> list[Piece]:
    """`text` as tokens with their places, `offset` added; no special tokens are put in or recognised."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
    pairs = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    return [Piece(token, start + offset, end + offset) for token, (start, end) in pairs]


def inner(tokenizer: PreTrainedTokenizerBase, text: str, offset: int = 0) -> list[Piece]:
    """`pieces` of a text that continues another text: no space is put in before it."""
    anchor = "a" if text[:1].isspace() else "\n"  # hardly any token contains this and the beginning of the text
    anchored = pieces(tokenizer, anchor + text, offset - len(anchor))
    return [p for p in anchored if p.start >= offset] if clean(anchored, offset) else pieces(tokenizer, text, offset)


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
        """The tokens at the end of `answer` that begin a character and do not complete it."""
        special = special_ids(self.seen.tokenizer)
        return [token for token in answer[self.seen.pending :] if token not in special]


def spliced(tokenizer: PreTrainedTokenizerBase, old: list[Piece], text: str, new: str, lead: str = "") -> list[Piece]:
    """The tokens of `text` + `new`, where `old` are those of `text`: only what is near the seam is encoded again.

    Old and new tokens are joined at a place where both have a token's end; without such a place, at the seam. `lead` is
    the text before, whose tokens stay.
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
