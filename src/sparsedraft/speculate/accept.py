"""Which drafts the target accepts: the maths of speculative sampling (Leviathan et al. 2023, Algorithm 1)."""

import torch
from torch import Tensor

from sparsedraft.speculate.sampling import draw


def accept_greedy(target_tokens: Tensor, drafted: Tensor) -> int:
    """How many of the n `drafted` tokens are accepted: the run of matches with the target's argmaxes [≥ n]."""
    matches = target_tokens[: len(drafted)] == drafted
    return int(matches.int().cumprod(0).sum())


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm(max(0, p - q)) [V]: what is left of the target's distribution after a rejection."""
    left = (p - q).clamp(min=0)
    total = left.sum()
    return left / total if total > 0 else p  # p = q up to rounding: a rejection that cannot happen in exact arithmetic


def accept_sampled(p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator) -> tuple[int, int]:
    """(accepted, next token) for target distributions p [n+1, V], drafter distributions q [n, V], drafts [n] from q.

    Draft x at place i is kept with probability min(1, p_i(x) / q_i(x)); at the first rejection the next token comes
    from the residual, after n acceptances from p_n. The tokens so emitted are distributed as the target's own.
    """
    for i, x in enumerate(drafted.tolist()):
        u = float(torch.rand((), generator=generator, dtype=torch.float64))
        if u * float(q[i, x]) >= float(p[i, x]):
            return i, draw(residual(p[i], q[i]), generator)
    return len(drafted), draw(p[len(drafted)], generator)
