"""Losses on the answer's tokens: pure functions of logits [n, V], means over the n positions.

p is the target, q the drafter. NLL is the SD² paper's; the distillation losses are those of GKD (Agarwal et al. 2024)
and DistillSpec (Zhou et al. 2024). TVD bounds acceptance directly: α = 1 - TVD(p, q).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def nll(q_logits: Tensor, tokens: Tensor) -> Tensor:
    """-mean log q(token): q_logits [n, V], tokens [n]."""
    return F.cross_entropy(q_logits.float(), tokens)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Forward KL: mean Σ_v p(v) (log p(v) - log q(v)), of logits [n, V]."""
    p, q = F.log_softmax(p_logits.float(), -1), F.log_softmax(q_logits.float(), -1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def topk_kl(topk_ids: Tensor, topk_logprobs: Tensor, q_logits: Tensor) -> Tensor:
    """Forward KL from the target's k likeliest tokens (ids and log p [n, k]) and one bucket for all the others.

    A lower bound of `kl` (data-processing inequality), and equal to it for k = V - 1.
    """
    log_q = q_logits.float().log_softmax(-1).gather(-1, topk_ids)
    p, q = topk_logprobs.exp(), log_q.exp()
    p_rest, q_rest = ((1 - share.sum(-1)).clamp(min=1e-6) for share in (p, q))
    return ((p * (topk_logprobs - log_q)).sum(-1) + p_rest * (p_rest.log() - q_rest.log())).mean()


def reverse_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Reverse KL: mean Σ_v q(v) (log q(v) - log p(v)), of logits [n, V]."""
    return kl(q_logits, p_logits)


def tvd(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Total variation distance: mean ½ Σ_v |p(v) - q(v)| = 1 - α, of logits [n, V]."""
    p, q = torch.softmax(p_logits.float(), -1), torch.softmax(q_logits.float(), -1)
    return 0.5 * (p - q).abs().sum(-1).mean()


DISTILLATION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl, "reverse-kl": reverse_kl, "tvd": tvd}
NAMES = ("nll", *DISTILLATION)
