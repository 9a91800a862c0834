"""Quantisation-aware training: rounding, its gradient, and weights that stay parameters."""

import copy
from pathlib import Path

import pytest
import torch

from sparsedraft.maths.pattern import Pattern
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.stages.finetune import masks, quantize
from sparsedraft.stages.finetune.loop import Settings, Task, train
from sparsedraft.text import bins
from sparsedraft.text.logits import answer_logits
from training import samples, sparse

SCHEMES = ("int8", "int4")


def matrix(rows: int, columns: int, seed: int, share: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator) ** 4
    return weight * (torch.rand(rows, columns, generator=generator) > share)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_dtype_is_rounded_in_float32(dtype: torch.dtype) -> None:
    weight = matrix(4, 64, 0).to(dtype)
    expected = quantize.snap(weight.float(), "int8").to(dtype)
    assert quantize.snap(weight, "int8").dtype == dtype and torch.equal(quantize.snap(weight, "int8"), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_linears_compute_with_rounded_weights_and_parameters_stay(scheme: str, tiny_llama) -> None:
    model, row = tiny_llama(), bins.fill(samples(2))
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for linear in decoder_linears(rounded).values():
            linear.weight.copy_(quantize.snap(linear.weight, scheme))
        plain, expected = answer_logits(model, row), answer_logits(rounded, row)
        names, weights = list(model.state_dict()), [p.clone() for p in model.parameters()]
        quantize.install(model, scheme)
        assert torch.equal(answer_logits(model, row), expected) and not torch.equal(plain, expected)
        assert list(model.state_dict()) == names and decoder_linears(model).keys() == decoder_linears(rounded).keys()
        assert all(torch.equal(p, w) and p.is_leaf for p, w in zip(model.parameters(), weights, strict=True))
        moved = copy.deepcopy(model)  # what accelerate and checkpointing do to models must not tie two together
        for linear in decoder_linears(moved).values():
            linear.weight.zero_()
        assert torch.equal(answer_logits(model, row), expected)
        assert not torch.equal(answer_logits(moved, row), expected)
        quantize.remove(model)
        assert torch.equal(answer_logits(model, row), plain)


def test_a_pattern_says_what_shares_a_scale(tiny_llama) -> None:
    """As packing does it: 32 stored values."""
    model, name = tiny_llama(), "model.layers.1.self_attn.q_proj"
    linear = decoder_linears(model)[name]
    weight = linear.weight.detach()
    quantize.install(model, "int4", {name: Pattern(2, 4)})
    seen = [decoder_linears(model)[other](torch.eye(64)).T for other in (name, name.replace("q_proj", "k_proj"))]
    assert torch.equal(seen[0], quantize.snap(weight, "int4", 64))
    assert not torch.equal(seen[0], quantize.snap(weight, "int4"))
    assert torch.equal(seen[1], quantize.snap(decoder_linears(model)[name.replace("q_proj", "k_proj")].weight, "int4"))


def test_the_gradient_is_that_of_the_rounded_weights_passed_straight_through(tiny_llama) -> None:
    model, row = tiny_llama(), bins.fill(samples(2))
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for linear in decoder_linears(rounded).values():
            linear.weight.copy_(quantize.snap(linear.weight, "int4"))
    quantize.install(model, "int4")
    for one in (model, rounded):
        answer_logits(one, row).logsumexp(-1).sum().backward()
    for (name, a), (_, b) in zip(model.named_parameters(), rounded.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_holds_the_mask_and_mends_the_rounding(scheme: str, tiny_llama, tmp_path: Path) -> None:
    target, model = tiny_llama(), tiny_llama()
    keep = sparse(model, 0.2)
    options = {"loss": "kl", "learning_rate": 3e-3, "tokens": 8000, "sequence_length": 128, "quantize": scheme}
    result = train(Task(model, keep, samples(40), samples(40), teacher=target), Settings(**options), tmp_path)
    assert result["val_loss"][1] < 0.9 * result["val_loss"][0]
    assert masks.broken(model, keep) == []
    measured = result["quantization"]
    assert measured["scheme"] == scheme and measured["quantized"]["val_loss"] == result["val_loss"][1]
    assert measured["float"]["val_loss"] != measured["quantized"]["val_loss"]
    assert not any("forward" in vars(linear) for linear in decoder_linears(model).values())
    for name, linear in decoder_linears(model).items():  # what is kept is not rounded, and has the mask's own zeros
        weight = linear.weight.detach()
        assert not torch.equal(weight, quantize.snap(weight, scheme)) and torch.equal(weight != 0, keep[name])


def test_what_is_measured_is_what_will_be_stored(tiny_llama) -> None:
    model = tiny_llama()
    seen = []

    def measure() -> dict[str, float]:
        linear = decoder_linears(model)["model.layers.0.mlp.up_proj"]
        x = torch.eye(linear.in_features)
        seen.append(linear(x).T.clone())
        return {"val_loss": float(len(seen))}

    stored = model.model.layers[0].mlp.up_proj.weight.detach().bfloat16().float()
    found = quantize.compare(model, "int8", torch.bfloat16, measure)
    assert found == {"scheme": "int8", "float": {"val_loss": 2.0}, "quantized": {"val_loss": 1.0}}
    assert torch.equal(seen[0], quantize.snap(stored, "int8")) and torch.equal(seen[1], stored)
