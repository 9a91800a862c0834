"""The state of one sequence under way, what drafters hand over, and when a sequence ends."""

from dataclasses import dataclass, field

from torch import Tensor

from sparsedraft.maths.sampling import Dice


@dataclass
class TokenSequence:
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
