"""How the target verifies drafts: it reads them, accepts some of them, and its cache keeps those."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparsedraft.maths.sampling import Sampling, likeliest, penalised, probabilities, sound
from sparsedraft.speculate.loop.accept import accept_block, accept_greedy, accept_sampled
from sparsedraft.speculate.loop.grammar import permitted
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.writers.protocol.backend import Backend


@dataclass(frozen=True)
class Verdict:
    """What the target makes of one draft: the places of the accepted tokens in it, and its own token after them.

    `tested`, `kept`, `expected` and `share` are those of `Step`.
    """

    accepted: list[int]
    token: int
    tested: int = 0
    kept: int = 0
    expected: float = 0.0
    share: float | None = None


class Verifier(Protocol):
    """Verifies drafts of one shape. A shape is a chain or a tree."""

    def read(self, target: Backend, sequences: Sequence[TokenSequence], drafts: Sequence[Draft]) -> list[Tensor]:
        """For each sequence the target's logits [n + 1, V]: after its tokens, and after each of its n drafted tokens;
        none [0, V] where it waits.

        Afterwards the target's cache holds all of these tokens.
        """
        ...

    def accept(self, sequence: TokenSequence, draft: Draft, logits: Tensor, sampling: Sampling) -> Verdict:
        """Which drafted tokens the target accepts, from what `read` returns. FloatingPointError for NaN logits."""
        ...

    def keep(
        self,
        target: Backend,
        sequences: Sequence[TokenSequence],
        drafts: Sequence[Draft],
        accepted: Sequence[Sequence[int]],
    ) -> None:
        """Remove from the target's cache all but what `sequences` now hold, without their last token, which the target
        has not read; `accepted` are the places of the drafted tokens that they hold."""
        ...


class ChainVerifier:
    """Verifies chains: drafted token i + 1 follows drafted token i."""

    def read(self, target: Backend, sequences: Sequence[TokenSequence], drafts: Sequence[Draft]) -> list[Tensor]:
        unread = [
            [] if sequence.waits else sequence.tokens[n:] + draft.tokens
            for sequence, n, draft in zip(sequences, target.lengths, drafts, strict=True)
        ]
        counts = [0 if s.waits else len(draft.tokens) + 1 for s, draft in zip(sequences, drafts, strict=True)]
        return target.forward(unread, counts)

    def accept(self, sequence: TokenSequence, draft: Draft, logits: Tensor, sampling: Sampling) -> Verdict:
        written = len(sequence.tokens)
        logits = sound(logits, "target", range(written, written + len(logits)))
        logits = penalised(logits, sampling, sequence.tokens, draft.tokens)
        if sequence.grammar is not None:
            logits = permitted(logits, sequence.grammar, sequence.written, draft.tokens)
        drafted = torch.tensor(draft.tokens)
        if sampling.greedy:
            choices = likeliest(logits)
            n = accept_greedy(choices, drafted)
            return Verdict([*range(n)], int(choices[n]))
        p = probabilities(logits, sampling)
        q = torch.stack(draft.q) if draft.q else None
        if q is not None and sampling.verification == "block":
            n, token, expected = accept_block(p, q, drafted, sequence.dice)
            share = float(torch.minimum(p[0], q[0]).sum())
            return Verdict([*range(n)], token, len(drafted), n, expected, share)
        n, token = accept_sampled(p, q, drafted, sequence.dice)
        if q is None:
            return Verdict([*range(n)], token)
        tested = min(n + 1, len(drafted))
        expected = float(torch.minimum(p[:tested], q[:tested]).sum())  # Σ_i Σ_v min(p_i(v), q_i(v))
        return Verdict([*range(n)], token, tested, n, expected)

    def keep(
        self,
        target: Backend,
        sequences: Sequence[TokenSequence],
        drafts: Sequence[Draft],
        accepted: Sequence[Sequence[int]],
    ) -> None:
        target.rollback([len(sequence.tokens) - 1 for sequence in sequences])
