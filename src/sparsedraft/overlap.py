"""The leak check: does text that is trained or calibrated on hold an evaluation prompt?"""

import re
from collections.abc import Sequence

from sparsedraft.errors import UserError
from sparsedraft.prompts import Prompt

N = 13  # words in a row


def words_of(text: str) -> tuple[str, ...]:
    """The normalised words of `text`: lower case, punctuation dropped."""
    return tuple(re.findall(r"\w+", text.lower()))


class Overlap:
    """Finds evaluation prompts in text.

    A text holds one if it shares N consecutive normalised words with a turn of it, or, where the turn has fewer than
    N words, if it is the same words. A short follow-up such as "Now make it shorter." is no leak.
    """

    def __init__(self, evaluation: Sequence[Prompt]) -> None:
        self.grams: dict[tuple[str, ...], str] = {}
        self.short: dict[tuple[str, ...], str] = {}
        for prompt in evaluation:
            for number, turn in enumerate(prompt.turns):
                words = words_of(turn)
                if len(words) >= N:
                    self.grams |= {words[i : i + N]: prompt.id for i in range(len(words) - N + 1)}
                elif not number:
                    self.short[words] = prompt.id

    def find(self, text: str) -> str | None:
        """The id of an evaluation prompt that `text` holds."""
        words = words_of(text)
        if (whole := self.short.get(words)) is not None:
            return whole
        spans = (words[i : i + N] for i in range(len(words) - N + 1))
        return next((self.grams[span] for span in spans if span in self.grams), None)


def check_no_overlap(training: Sequence[Prompt], evaluation: Sequence[Prompt]) -> None:
    """Raise UserError if an evaluation prompt occurs in the training prompts."""
    overlap = Overlap(evaluation)
    hits: dict[str, str] = {}
    for prompt in training:
        for turn in prompt.turns:
            if (hit := overlap.find(turn)) is not None:
                hits.setdefault(hit, prompt.id)
    if hits:
        mine, theirs = next(iter(hits.items()))
        raise UserError(
            f"{len(hits)} evaluation prompt(s) occur in the training prompts (first: '{mine}' in '{theirs}'): "
            "take them out, or allow it with --allow-overlap."
        )
