"""The state of one sequence under way, what drafters hand over, and when a sequence ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsedraft.maths.sampling import Dice
from sparsedraft.models.tokenizers.retokenize import special_ids
from sparsedraft.models.tokenizers.texts import text_of


@dataclass
class Row:
    """One sequence: `tokens` begin with the `prompt` tokens of the prompt and may grow to `end`."""

    index: int
    tokens: list[int]
    prompt: int
    end: int
    dice: Dice
    finish_reason: str = ""  # "eos", "stop", "length" or "context" once it has ended

    @property
    def room(self) -> int:
        """Tokens that may still be written."""
        return self.end - len(self.tokens)


@dataclass(frozen=True)
class Draft:
    """Proposed tokens. `q[i]` [V] is the distribution that token i was drawn from, None where nothing was drawn.

    `parents` makes a tree of them (see `masks.tree`); empty: a chain.
    """

    tokens: list[int] = field(default_factory=list)
    q: list[Tensor] | None = None
    parents: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """One verification pass: `emitted` is the accepted drafts and the target's own token, cut at the sequence's end."""

    drafted: list[int]
    accepted: int  # drafted tokens that were emitted
    emitted: list[int]
    row: int = 0
    tested: int = 0  # sampled drafts that the rule came to, up to the first rejection
    kept: int = 0  # of them, those that it accepted
    expected: float = 0.0  # Σ over those tested of Σ_v min(p, q)


class Stops:
    """Strings that end a sequence, looked for in the text of its newest tokens, token by token.

    A string that is a special token, which no text shows, is looked for as that token.
    The window is a fixed number of tokens before each token, so where a sequence stops depends on its tokens alone and
    not on how many of them came in one step.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        self.tokenizer, self.strings = tokenizer, [s for s in strings if s]
        special = special_ids(tokenizer)
        self._ids = {token for s in self.strings if (token := tokenizer.get_vocab().get(s)) in special}
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
