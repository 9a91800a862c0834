"""Losses on the answer's tokens: pure functions, means over the n positions.

p is the target, q the drafter. NLL is the SD² paper's; the divergences are those of GKD (Agarwal et al. 2024) and
DistillSpec (Zhou et al. 2024). TVD is acceptance itself: α = 1 - TVD(p, q).

A divergence takes two tensors of log-probabilities over the same outcomes: all V tokens (`whole`), or the target's k
likeliest and one bucket for all others (`bucketed`). All three are f-divergences, and the bucket is a map that both
distributions go through; so by the data-processing inequality the bucketed value is a *lower* bound of the whole one.
It grows with k and is equal at k = V - 1. It does not see how q divides the bucket among its tokens. For TVD, 1 minus
the bound is an upper bound of α.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Least probability of the bucket, below which 1 - Σ is rounding: p is stored in 16 bits (log p to 2⁻¹², so p to 1e-4),
# q computed in 32. The bounds hold up to these; without the first, reverse KL would follow the rounding of p.
REST_P, REST_Q = 1e-4, 1e-6
FLOOR = -80.0  # log-probability that stands for none: e⁻⁸⁰ adds nothing, and stays finite in every formula


def _wide(logits: Tensor) -> Tensor:
    """The logits in no fewer bits than float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def nll(q_logits: Tensor, tokens: Tensor) -> Tensor:
    """-mean log q(token): q_logits [n, V], tokens [n]."""
    return F.cross_entropy(_wide(q_logits), tokens)


def whole(p_logits: Tensor, q_logits: Tensor) -> tuple[Tensor, Tensor]:
    """(log p, log q) over all tokens, of logits [n, V_p] and [n, V_q].

    Heads of one tokenizer may be padded to different widths. Entries that only one of them has are no tokens, and both
    distributions leave them out.
    """
    width = min(p_logits.shape[-1], q_logits.shape[-1])
    return _wide(p_logits[..., :width]).log_softmax(-1), _wide(q_logits[..., :width]).log_softmax(-1)


def bucketed(topk_ids: Tensor, topk_logprobs: Tensor, q_logits: Tensor) -> tuple[Tensor, Tensor]:
    """(log p, log q) [n, k + 1] over the target's k likeliest tokens (ids and log p [n, k]) and a bucket for the rest.

    An id beyond the drafter's head (padding of a wider one) counts to the rest. Both distributions sum to 1, also where
    the stored 16-bit log-probabilities do not.
    """
    known = topk_ids < q_logits.shape[-1]
    log_q = _wide(q_logits).log_softmax(-1).gather(-1, topk_ids.where(known, 0))
    return _with_rest(topk_logprobs.to(log_q.dtype), known, REST_P), _with_rest(log_q, known, REST_Q)


def _with_rest(logprobs: Tensor, known: Tensor, least: float) -> Tensor:
    logprobs = logprobs.masked_fill(~known, FLOOR).clamp(min=FLOOR)
    rest = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=least)
    return torch.cat([logprobs, rest.log()], -1).log_softmax(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Forward KL: mean Σ_v p(v) (log p(v) - log q(v)), of log-probabilities [n, V]."""
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Reverse KL: mean Σ_v q(v) (log q(v) - log p(v)), of log-probabilities [n, V]."""
    return kl(log_q, log_p)


def tvd(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Total variation distance: mean ½ Σ_v |p(v) - q(v)| = 1 - α, of log-probabilities [n, V]."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1).mean()


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl, "reverse-kl": reverse_kl, "tvd": tvd}
NAMES = ("nll", *DIVERGENCES)
