"""Which drafts the target accepts: the maths of speculative sampling."""

import torch
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


def accept_block(p: Tensor, q: Tensor, drafted: Tensor, dice: Dice) -> tuple[int, int, float]:
    """(accepted, next token, Σ_i of the chance to accept i drafts or more) for p, q and drafts as in `accept_sampled`.

    Block verification (Sun et al. 2025, "Block Verification Accelerates Speculative Decoding", Algorithm 2): the
    longest prefix is accepted by its joint ratio w_i = min(1, w_(i-1) p_i(x_i) / q_i(x_i)), w_0 = 1, so that a token
    that the target likes better than the drafter makes up for one that it likes less. What is left of the target
    after i drafts is max(0, w_i p_(i+1) - q_(i+1)), of the mass r_i; i drafts are accepted, and no more, with the
    chance h_i = r_i / (r_i + 1 - w_i), the whole draft with w_n. Of each draft at least as many tokens are accepted
    in expectation as by `accept_sampled`, and they have the target's distribution. How long a draft is may depend
    on its tokens.

    Given the drafts before it, draft i is accepted with the chance w_(i-1) - r_(i-1): the third number sums these.
    """
    n, weights, at = len(drafted), [1.0], drafted.to(p.device)[:, None]
    for above, below in zip(p[:n].gather(1, at).flatten().tolist(), q.gather(1, at).flatten().tolist(), strict=True):
        joint = weights[-1] * above
        weights.append(joint / below if joint < below else float(joint > 0))  # what has no chance never gets one
    left = torch.tensor(weights[:n], dtype=p.dtype, device=p.device)[:, None] * p[:n]
    left = left.sub_(q).clamp_(min=0)
    masses = left.sum(1).tolist()
    expected = sum(weight - mass for weight, mass in zip(weights, masses, strict=False))
    if dice.accepts(weights[n], 1.0):
        return n, dice.draw(p[n]), expected
    longer = range(n - 1, 0, -1)
    i = next((i for i in longer if dice.accepts(masses[i], masses[i] + 1 - weights[i])), 0)
    # no mass: p = q up to rounding, a rejection that cannot happen in exact arithmetic
    return i, dice.draw(left[i] / masses[i] if masses[i] > 0 else p[i]), expected


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
