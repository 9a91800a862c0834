"""How likely tokens were by a model's own logits: what is reported of them, whatever they were drawn with."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from sparsedraft.maths.sampling import wide


class Likelihood(NamedTuple):
    """The log-probability of a token, and of the likeliest ones in its place, likeliest first: (token, logprob)."""

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


def likelihoods(logits: Tensor, tokens: Sequence[int], top: int) -> list[Likelihood]:
    """Of each of n `tokens` under its row of `logits` [n, V]: ln softmax, that of the `top` likeliest beside it."""
    found = []
    for row, token in zip(wide(logits[: len(tokens)]), tokens, strict=True):
        logprobs = row.log_softmax(-1)
        values, ids = logprobs.topk(min(top, len(logprobs)))
        best = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        found.append(Likelihood(float(logprobs[token]), best))
    return found
