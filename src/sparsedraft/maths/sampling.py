"""From logits to the distribution that a token is drawn from; the same for target and drafter."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsedraft.maths.warpers import COLDEST, Sampling


def wide(logits: Tensor) -> Tensor:
    """`logits` in float32 at least: in 16 bits, probabilities would not sum to 1."""
    return logits if logits.dtype == torch.float64 else logits.float()


def penalised(logits: Tensor, sampling: Sampling, context: Sequence[int], drafted: Sequence[int] = ()) -> Tensor:
    """`logits` [n, V] with the repetition penalty; row i follows `context` and the first i of `drafted`.

    The penalty divides the positive logits of all tokens of that prefix, prompt included, and multiplies negative ones.
    """
    if sampling.repetition_penalty == 1:
        return logits
    seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    seen[:, torch.tensor([*context], device=logits.device)] = True
    for i, token in enumerate(drafted[: len(logits) - 1]):
        seen[i + 1 :, token] = True
    logits = wide(logits)
    factor = sampling.repetition_penalty
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution over the last axis of `logits` [..., V] after the warpers; greedy is one-hot."""
    logits = wide(logits)
    if sampling.greedy:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, COLDEST)
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        outside[..., 0] = False  # the likeliest token stays, even of a share that float32 has as 0
        logits = logits.masked_fill(torch.zeros_like(outside).scatter_(-1, index, outside), -torch.inf)
    if sampling.min_p > 0:
        p = logits.softmax(-1)
        logits = logits.masked_fill(p < sampling.min_p * p.amax(-1, keepdim=True), -torch.inf)
    return logits.softmax(-1)


class Dice:
    """The random draws of one sequence, all of which follow from its seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, distribution: Tensor) -> int:
        """One token from a distribution [V]."""
        return draw(distribution, self.generator)

    def accepts(self, p: float, q: float) -> bool:
        """True with probability min(1, p / q)."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64)) * q < p


def draw(distribution: Tensor, generator: torch.Generator) -> int:
    """One token from a distribution [V]; the draw happens on the CPU, so that a seed means the same everywhere.

    It inverts the cumulative sums with one random number, in a quarter of multinomial's time.
    """
    sums = distribution.cpu().cumsum(0, dtype=torch.float64)
    if not 0 < float(sums[-1]) < torch.inf:
        raise FloatingPointError("a distribution to draw from does not add up: give a milder repetition penalty")
    place = torch.rand((), generator=generator, dtype=torch.float64) * sums[-1]
    token = int(torch.searchsorted(sums, place, right=True))  # right: never one of probability 0
    return token if token < len(sums) else int(torch.searchsorted(sums, sums[-1]))  # the product was rounded up


def likeliest(logits: Tensor) -> Tensor:
    """The argmax of each row of `logits` [..., V], on the CPU (where numpy is 20 times as fast as torch)."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return torch.from_numpy(np.asarray(logits.detach().numpy().argmax(-1)))
    return logits.argmax(-1).cpu()


def unsound(who: str, tokens: int) -> str:
    """The message for logits of `who`, after so many tokens, that no softmax can use."""
    return f"the {who}'s logits after {tokens} tokens hold NaN or infinity: try float32, or check the weights"


def sound(logits: Tensor, who: str, positions: Sequence[int]) -> Tensor:
    """`logits` [n, V], of which row i follows positions[i] tokens; FloatingPointError for a NaN or +infinity."""
    bad = ~(logits.amax(-1) < torch.inf)  # one pass: amax of a row with NaN is NaN, and no comparison with it is true
    if bool(bad.any()):
        raise FloatingPointError(unsound(who, positions[int(bad.nonzero()[0])]))
    return logits
