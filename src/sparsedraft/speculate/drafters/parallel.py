"""Drafts from a model that writes all of a draft in one pass (PARD, An et al. 2025, arXiv 2504.18583)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparsedraft.maths.sampling import Sampling, penalised, probabilities, sound
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.writers.protocol.backend import Backend


class ParallelDrafter(ModelDrafter):
    """A model that reads `mask_token` in the place of each draft but the last, and so drafts k tokens in one pass.

    Draft i comes from the logits behind the text and i mask tokens: its q does not depend on the drafts before it, but
    for the repetition penalty. Verification takes it as that of any chain. The next call takes the mask tokens back.
    All else is as in ModelDrafter; `confident` ends a draft, and saves no pass.
    """

    at_once = True  # see Outcome

    def __init__(self, backend: Backend, sampling: Sampling, mask_token: int, **options: Any) -> None:
        super().__init__(backend, sampling, **options)
        self.mask_token = mask_token

    def propose(self, sequences: Sequence[TokenSequence], limits: Sequence[int]) -> list[Draft]:
        contexts = [self.read(s) if limit > 0 else [] for s, limit in zip(sequences, limits, strict=True)]
        limits = [max(0, self._limit(len(context), limit)) for context, limit in zip(contexts, limits, strict=True)]
        self._tell(sequences, limits)
        drafts = [Draft([], None if self.is_certain(sequence) else []) for sequence in sequences]
        if not any(limits):
            return drafts
        logits = self._read_with_masks(contexts, limits)
        for b, (sequence, limit, draft) in enumerate(zip(sequences, limits, drafts, strict=True)):
            reach, q = 1.0, draft.q if draft.q is not None else []
            for i in range(limit):
                token, reach = self._next(sequence, draft.tokens, logits[b][i : i + 1], q, reach)
                if token is None:
                    break
                draft.tokens.append(token)
        return drafts

    def distributions(self, sequence: TokenSequence, drafted: Sequence[int]) -> Tensor:
        """q [n + 1, V] of a draft's first n + 1 tokens, of which the first n are `drafted`. See ModelDrafter."""
        if self._know is not None:
            self.backend.forget()  # type: ignore[attr-defined]
            self._know(0, self.heard(sequence))
        logits = self._read_with_masks([self.read(sequence)], [len(drafted) + 1])[0]
        logits = sound(logits, "drafter", range(len(sequence.tokens), len(sequence.tokens) + len(logits)))
        logits = logits if self.vocabulary is None else self.vocabulary.logits(logits)
        return probabilities(penalised(logits, self.sampling, sequence.tokens, drafted), self.sampling)

    def _read_with_masks(self, contexts: list[list[int]], counts: Sequence[int]) -> list[Tensor]:
        """The logits [counts[b], V] behind each context and behind each of the counts[b] - 1 mask tokens after it."""
        unread = self._unread(contexts, [n > 0 for n in counts])
        ids = [row + [self.mask_token] * (n - 1) if n else [] for row, n in zip(unread, counts, strict=True)]
        logits = self.backend.forward(ids, counts)
        for cached, new in zip(self._cached, ids, strict=True):
            cached += new
        return logits


def model_drafter(backend: Backend, sampling: Sampling, mask_token: int | None, **options: Any) -> ModelDrafter:
    """A drafter that writes in one pass with a mask token, without one token by token."""
    if mask_token is None:
        return ModelDrafter(backend, sampling, **options)
    return ParallelDrafter(backend, sampling, mask_token, **options)
