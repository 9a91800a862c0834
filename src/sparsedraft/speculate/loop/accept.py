"""Which drafts the target accepts: the maths of speculative sampling."""

from torch import Tensor

from sparsedraft.maths.sampling import Dice


def accept_greedy(target_tokens: Tensor, drafted: Tensor) -> int:
    """How many of the n `drafted` tokens are accepted: the run of matches with the target's argmaxes [≥ n]."""
    matches = target_tokens[: len(drafted)] == drafted
    return int(matches.int().cumprod(0).sum())


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm(max(0, p - q)) [V]: what is left of the target's distribution after a rejection."""
    left = (p - q).clamp(min=0)
    total = left.sum()
    return left / total if total > 0 else p  # p = q up to rounding: a rejection that cannot happen in exact arithmetic


def accept_sampled(p: Tensor, q: Tensor | None, drafted: Tensor, dice: Dice) -> tuple[int, int]:
    """(accepted, next token) for target distributions p [n+1, V], drafter distributions q [n, V], drafts [n] from q.

    Leviathan et al. 2023, Algorithm 1: draft x at place i is kept with probability min(1, p_i(x) / q_i(x)); at the
    first rejection the next token comes from the residual, after n acceptances from p_n. The emitted tokens are
    distributed as the target's own. q None: the drafts were certain, not drawn (q is one-hot). The rule is then: draw
    the target's token, and accept the draft if it is the same.
    """
    for i, x in enumerate(drafted.tolist()):
        if q is None:  # P(accept x) = p_i(x)
            token = dice.draw(p[i])
            if token != x:
                return i, token
            continue
        if not dice.accepts(float(p[i, x]), float(q[i, x])):  # u < min(1, p_i(x) / q_i(x))
            return i, dice.draw(residual(p[i], q[i]))
    return len(drafted), dice.draw(p[len(drafted)])
