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
    halves.install(ours, mixed=True, adds=adds)
    for model in (plain, ours):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    for _ in range(2):  # the second time with copies that are there
        expected, found = step(plain), step(ours)
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():  # an embedding adds its rows in another order
            exact = not (adds and "embed" in name)
            assert torch.equal(found[name], gradient) if exact else torch.allclose(found[name], gradient, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_that_adds_its_rows_has_the_same_gradient(tied: bool, tiny_llama) -> None:
    plain, ours = (tiny_llama(tie_word_embeddings=tied, pad_token_id=7) for _ in range(2))
    halves.install(ours, mixed=True, adds=True)
    for model in (plain, ours):
        model.zero_grad()
    for _ in range(2):
        for model in (plain, ours):
            loss, _ = Objective()(model.train(), bins.fill(samples(4)))
            loss.backward()
        for (name, expected), found in zip(plain.named_parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_gradients_of_the_next_step_begin_anew_in_the_same_memory(tiny_llama) -> None:
    model = tiny_llama()
    halves.install(model, mixed=True, adds=True)
    first = step(model)
    places = {name: p.grad.data_ptr() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        halves.put_by(parameter)
    assert all(p.grad is None for p in model.parameters() if p.dim() > 1)
    again = step(model)
    assert all(torch.equal(again[name], gradient) for name, gradient in first.items())
    linears = [name for name in places if "proj" in name or "embed" in name]
    assert linears and all(dict(model.named_parameters())[name].grad.data_ptr() == places[name] for name in linears)


def test_without_autocast_nothing_is_rounded(tiny_llama) -> None:
    plain, ours, ids = tiny_llama(), tiny_llama(), torch.arange(3, 20)[None]
    halves.install(ours, mixed=True, adds=True)
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
