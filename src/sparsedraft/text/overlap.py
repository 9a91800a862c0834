"""The leak check: does a training or calibration text contain an evaluation prompt?"""

import re
from collections.abc import Iterator, Sequence

from sparsedraft.base.errors import UserError
from sparsedraft.text.prompts import Prompt

N = 13  # words in a row
# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Han. Each of their characters is taken for a
# word, and counts half.
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
ALONE = re.compile(rf"[{UNSPACED}]")
# Words, and signs between numbers: 7 * 8 is not 7 + 8
SAID = re.compile(r"\w+|(?<=\d)[+*/%^=<>×÷−-](?=\d)")


def words_of(text: str) -> tuple[str, ...]:
    """The words of `text` in lower case, without punctuation; in scripts without spaces, its characters."""
    return tuple(WORD.findall(text.lower()))


def _spans(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """For each word the shortest run from it on that weighs N words."""
    weights = [1 if ALONE.fullmatch(word) else 2 for word in words]
    end = weight = 0
    for start in range(len(words)):
        while end < len(words) and weight < 2 * N:
            weight += weights[end]
            end += 1
        if weight < 2 * N:
            return
        yield words[start:end]
        weight -= weights[start]


def _exactly(text: str) -> str:
    """The normal form of a text of fewer than N words: words, and signs between numbers."""
    joined = re.sub(r"(?<=\d)\s+(?=[^\w\s])|(?<=[^\w\s])\s+(?=\d)", "", text.lower())  # 7 * 8 is 7*8
    return " ".join(SAID.findall(joined))


class Overlap:
    """Finds evaluation prompts in text.

    A text contains a prompt if it shares N consecutive words with one of its turns. A first turn of fewer than N words
    must equal the text, in words and in signs between numbers. A short follow-up such as "Now make it shorter." is
    not a leak.
    """

    def __init__(self, evaluation: Sequence[Prompt]) -> None:
        self.grams: dict[tuple[str, ...], str] = {}
        self.short: dict[str, str] = {}
        for prompt in evaluation:
            for number, turn in enumerate(prompt.turns):
                spans = dict.fromkeys(_spans(words_of(turn)), prompt.id)
                self.grams |= spans
                if not spans and not number and (exact := _exactly(turn)):
                    self.short[exact] = prompt.id

    def find(self, text: str) -> str | None:
        """The id of an evaluation prompt that `text` contains, or None."""
        if (whole := self.short.get(_exactly(text))) is not None:
            return whole
        return next((self.grams[span] for span in _spans(words_of(text)) if span in self.grams), None)


def check_no_overlap(training: Sequence[Prompt], evaluation: Sequence[Prompt]) -> None:
    """Raise UserError if an evaluation prompt occurs in the training prompts."""
    overlap = Overlap(evaluation)
    hits: dict[str, str] = {}
    for prompt in training:
        for turn in prompt.turns:
            if (hit := overlap.find(turn)) is not None:
                hits.setdefault(hit, prompt.id)
    if hits:
        hit_id, source_id = next(iter(hits.items()))
        raise UserError(
            f"{len(hits)} evaluation prompt(s) occur in the training prompts (first: '{hit_id}' in '{source_id}'): "
            "take them out, or allow it with --allow-overlap."
        )
