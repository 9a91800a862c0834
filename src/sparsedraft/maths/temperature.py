"""The temperature at which a drafter is accepted most, fitted to what its target says along some text.

Compressing a model changes how sure it is: pruning flattens its distribution, some training sharpens it. q made of the
drafter's logits divided by another temperature than the target's is still a q, and verification takes this very one, so
the fit costs nothing but its passes. It maximises the mean acceptance Σ_v min(p(v), q(v)) itself, at a sampling
temperature of 1. Of this mean over many places a golden-section search would need one maximum only, which nothing
promises: the whole range is tried in steps of COARSE, then in steps of FINE around the best of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RANGE = (0.5, 1.5)
COARSE, FINE = 0.05, 0.01  # FINE is the precision of the result
ROWS = 32  # places that are looked at at once: their probabilities take as much memory as their logits


@dataclass(frozen=True)
class Fitted:
    """`temperature` is the best one; `alpha` the mean acceptance at 1 and at `temperature`, over so many `places`."""

    temperature: float
    alpha: tuple[float, float]
    places: int


Measure = Callable[[Sequence[float]], tuple[Sequence[float], int]]  # (Σ of the acceptance at each temperature, places)


def fit(measure: Measure) -> Fitted:
    """The best temperature in RANGE; of equals the one nearest to 1. `measure` is called twice."""
    low, high = RANGE
    tried = _measured(measure, _steps(low, high, COARSE))
    best = _best(tried)
    tried |= _measured(measure, _steps(max(low, best - COARSE + FINE), min(high, best + COARSE - FINE), FINE))
    best = _best(tried)
    places = next(iter(tried.values()))[1]
    return Fitted(best, (tried[1.0][0] / places, tried[best][0] / places), places)


def accepted(p: Tensor, q_logits: Tensor, temperatures: Sequence[float], ids: Tensor | None = None) -> Tensor:
    """Σ over n places of Σ_v min(p(v), q(v)), float64 [m], for the drafter's logits [n, V] at each of m temperatures.

    p [n, V] are the target's probabilities; of heads of different width, the common tokens count. With `ids` [n, k]
    only p [n, k] of these tokens is known. All others then count as one outcome, the least of what p and q have left:
    an upper bound, as in finetune.losses.
    """
    sums = torch.zeros(len(temperatures), dtype=torch.float64)
    for start in range(0, len(p), ROWS):
        part = slice(start, start + ROWS)
        logits = q_logits[part].float()
        logits = logits - logits.amax(-1, keepdim=True)
        known = None if ids is None else ids[part]
        for i, temperature in enumerate(temperatures):
            sums[i] += float(_accepted(p[part].float(), logits / temperature, known))
    return sums


def _accepted(p: Tensor, logits: Tensor, ids: Tensor | None) -> Tensor:
    """The sum of `accepted` for scaled logits [n, V], of which the largest is 0."""
    q = logits.exp_()
    q /= q.sum(-1, keepdim=True)
    if ids is None:
        width = min(p.shape[-1], q.shape[-1])
        return torch.minimum(p[..., :width], q[..., :width]).sum(dtype=torch.float64)
    here = ids < q.shape[-1]  # an id beyond the drafter's head is the padding of a wider one
    p = p.where(here, 0)
    q = q.gather(-1, ids.where(here, 0)).where(here, 0)
    rest = torch.minimum(1 - p.sum(-1), 1 - q.sum(-1)).clamp(min=0)  # p is stored in 16 bits, and may sum to more
    return torch.minimum(p, q).sum(dtype=torch.float64) + rest.sum(dtype=torch.float64)


def _steps(low: float, high: float, step: float) -> list[float]:
    """`low` to `high`, both included, in whole hundredths."""
    return [round(low + i * step, 2) for i in range(round((high - low) / step) + 1)]


def _measured(measure: Measure, temperatures: Sequence[float]) -> dict[float, tuple[float, int]]:
    sums, places = measure(temperatures)
    return {t: (total, places) for t, total in zip(temperatures, sums, strict=True)}


def _best(tried: dict[float, tuple[float, int]]) -> float:
    return max(tried, key=lambda t: (tried[t][0], -abs(t - 1)))
