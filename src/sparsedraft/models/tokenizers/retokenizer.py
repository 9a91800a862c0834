"""The text of a sequence in another tokenizer's ids, step by step and around the seam only.

Nothing here can make the output wrong: ids that do not fit only make for drafts that are not accepted.
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
