"""What a step of the loop works on: sequences, drafts, and what comes of a step."""

from dataclasses import dataclass, field

from torch import Tensor

from sparsedraft.maths.likelihoods import Likelihood
from sparsedraft.maths.sampling import Dice, Sampling
from sparsedraft.speculate.loop.grammar import Grammar
from sparsedraft.speculate.loop.stops import Stops


@dataclass
class TokenSequence:
    """A text under way: `tokens` begins with the prompt, of `prompt` tokens, and may grow to `end` tokens.

    `sampling` and `stops` are its own; None: those of the decoder. `k`: tokens to draft a step for it, whatever the
    policy says. `cached`: tokens of its prompt that the target had read before; `first`: those that its first step
    reads. `waits`: nothing is written yet, as the prompt is read in pieces; `behind`: its drafter has more to read than
    a step may. `top_logprobs`: how many of the likeliest tokens its steps are to tell beside each token; None: no
    log-probabilities. `drafter`: the name of its own, where there are several; None: it has none. `read_as`: its prompt
    as a drafter with another tokenizer reads it; None: by its text. `grammar`: what the answer has to follow; None:
    nothing.
    """

    index: int  # its place among the prompts
    tokens: list[int]
    prompt: int
    end: int
    dice: Dice
    limit: str = "length"  # what `end` comes from: "length" (max_new_tokens), or "context" (the target's)
    finish_reason: str = ""  # once it has ended: "eos", "stop", or its `limit`
    sampling: Sampling | None = None
    stops: Stops | None = None
    k: int | None = None
    cached: int = 0
    first: int = 0
    waits: bool = False
    behind: bool = False
    top_logprobs: int | None = None
    drafter: str | None = None
    read_as: list[int] | None = None
    grammar: Grammar | None = None

    @property
    def written(self) -> list[int]:
        """The answer so far."""
        return self.tokens[self.prompt :]

    @property
    def room(self) -> int:
        """Tokens that may still be written."""
        return self.end - len(self.tokens)


@dataclass(frozen=True)
class Draft:
    """Proposed tokens. `q[i]` [V] is the distribution that token i was drawn from; None where no token was drawn.

    `match`: where look-up or another model drafts beside a model and that was not asked, the length of the match in
    tokens, 0 for none; else None.
    """

    tokens: list[int] = field(default_factory=list)
    q: list[Tensor] | None = None
    match: int | None = None


@dataclass(frozen=True)
class Step:
    """What one step gives one sequence. `emitted` is the accepted drafts and the target's own token, cut at the
    sequence's end."""

    drafted: list[int]
    accepted: int  # drafted tokens that were emitted
    emitted: list[int]
    row: int = 0  # the sequence's index
    tested: int = 0  # sampled drafts that the rule looked at: all, or token by token up to the first rejection
    kept: int = 0  # of these, the accepted ones
    expected: float = 0.0  # Σ over the tested ones of the chance to be accepted, given those before them
    share: float | None = None  # Σ_v min(p(v), q(v)) of the first draft, where a block was verified
    finish_reason: str = ""  # why the sequence ended with this step; "" where it goes on
    match: int | None = None  # that of the draft
    logprobs: tuple[Likelihood, ...] = ()  # of the emitted tokens by the target's own logits, where the sequence asks
