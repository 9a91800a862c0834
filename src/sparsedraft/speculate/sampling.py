"""From logits to the distribution that a token is drawn from; the same for target and drafter."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsedraft.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Temperature (0: greedy), then top-k (0: off), then top-p (1: off), in transformers' order."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature {self.temperature} is not possible: give 0 (greedy) or more.")
        if self.top_k < 0:
            raise UserError(f"top-k {self.top_k} is not possible: give 0 (off) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p {self.top_p} is not possible: give a share above 0 and up to 1 (off).")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution over the last axis of `logits` [..., V] after the warpers, float32; greedy is one-hot."""
    logits = logits.float()
    if sampling.greedy:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p  # the likeliest token always stays
        logits = logits.masked_fill(torch.zeros_like(outside).scatter_(-1, index, outside), -torch.inf)
    return logits.softmax(-1)


def draw(distribution: Tensor, generator: torch.Generator) -> int:
    """One token from a distribution [V]; the draw happens on the CPU, so that a seed means the same everywhere."""
    return int(torch.multinomial(distribution.cpu(), 1, generator=generator))
