"""Samples to train on, and models with random zeros."""

import torch

from sparsedraft.models.decoder import decoder_linears
from sparsedraft.stages.finetune import masks
from sparsedraft.text.sample import Sample


def samples(count: int, seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        n = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, 320, (n,), generator=generator).tolist()

    return [Sample(str(i), ids(3, 20), ids(2, 30)) for i in range(count)]


def sparse(model, share: float = 0.5) -> dict[str, torch.Tensor]:
    """Zero a random half of every decoder linear; return the keep-masks."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for linear in decoder_linears(model).values():
            linear.weight[torch.rand(linear.weight.shape, generator=generator) < share] = 0
    return masks.masks_of(model, list(decoder_linears(model)))
