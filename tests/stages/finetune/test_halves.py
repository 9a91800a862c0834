"""Copies of weights in 16 bits: what autocast would compute, made again when the weight has changed, and only then."""

import pytest
import torch
from torch import nn

from sparsedraft.stages.finetune import halves
from sparsedraft.stages.finetune.adamw import MaskedAdamW
from sparsedraft.stages.finetune.objective import Objective
from sparsedraft.text import bins
from training import samples, sparse

HALF = torch.bfloat16


def step(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients of two rows under autocast, and the loss of the second."""
    model.zero_grad()
    for seed in (0, 1):
        with torch.autocast("cpu", dtype=HALF):
            loss, _ = Objective()(model.train(), bins.fill(samples(4, seed)))
        loss.backward()
    return {"": loss.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_linears_with_copies_compute_what_autocast_does(checkpointed: bool, adds: bool, tiny_llama) -> None:
    plain, ours = tiny_llama(), tiny_llama()
    halves.install(ours, adds)
    for model in (plain, ours):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    for _ in range(2):  # the second time with copies that are there
        expected, found = step(plain), step(ours)
        assert expected.keys() == found.keys() and all(torch.equal(found[name], g) for name, g in expected.items())


def test_without_autocast_nothing_is_rounded(tiny_llama) -> None:
    plain, ours, ids = tiny_llama(), tiny_llama(), torch.arange(3, 20)[None]
    halves.install(ours, adds=True)
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, ours(ids).logits)


def test_a_copy_follows_whatever_writes_to_the_weight(tiny_llama) -> None:
    model = tiny_llama()
    keep = sparse(model)
    weight = model.model.layers[1].mlp.up_proj.weight
    optimizer = MaskedAdamW([weight], lr=1e-2, betas=(0.9, 0.95))

    def fresh() -> bool:
        return torch.equal(halves.half(weight, HALF), weight.to(HALF))

    first = halves.half(weight, HALF)
    assert fresh() and first.data_ptr() == halves.half(weight, HALF).data_ptr(), "one copy"
    for masked in (False, True):
        if masked:
            optimizer.hold(weight, keep["model.layers.1.mlp.up_proj"])
        before = weight.detach().clone()
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        assert not torch.equal(weight, before) and fresh()
    with torch.no_grad():
        weight.copy_(before)
    assert fresh() and first.data_ptr() == halves.half(weight, HALF).data_ptr(), "in the same place"


def test_a_gradient_goes_through_in_the_dtype_of_the_weight() -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    (halves.half(weight, HALF) * torch.full((3, 4), 3.0, dtype=HALF)).sum().backward()
    assert torch.equal(weight.grad, torch.full((3, 4), 3.0)) and halves.half(weight, torch.float32) is weight
    (halves.half(weight, HALF, adds=True) * torch.full((3, 4), 2.0, dtype=HALF)).sum().backward()
    assert torch.equal(weight.grad, torch.full((3, 4), 5.0))
