"""AdamW on the surviving weights: torch's arithmetic, and nothing stored for the rest."""

import pytest
import torch
from torch import nn

from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.stages.finetune import adamw
from sparsedraft.stages.finetune.adamw import MaskedAdamW, pack, unpack

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}


@pytest.fixture(autouse=True, params=["native", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By the extension, and as where there is none."""
    if request.param == "torch":
        monkeypatch.setattr(adamw, "is_built", lambda: False)
    elif not adamw.is_built():
        pytest.skip("the extension is not built")
    return request.param


def masked(
    pattern: str, sparsity: float | None, shape: tuple[int, int] = (48, 64)
) -> tuple[nn.Parameter, torch.Tensor]:
    """A random weight with its zeros, and its keep-mask."""
    torch.manual_seed(0)
    weight = torch.randn(shape)
    parsed = Pattern.parse(pattern)
    keep = keep_mask(parsed, weight.abs(), parsed.resolve(sparsity))
    return nn.Parameter(weight * keep), keep


@pytest.mark.parametrize(
    ("pattern", "sparsity"),
    [("unstructured", 0.5), ("unstructured", 0.75), ("2:4", None), ("4:8", None), ("1:4", None), ("2:8", None)],
)
def test_equals_torchs_adamw_with_masked_gradients(pattern: str, sparsity: float | None) -> None:
    ours, keep = masked(pattern, sparsity)
    theirs = nn.Parameter(ours.detach().clone())
    bias, their_bias = (nn.Parameter(torch.ones(48)) for _ in range(2))
    optimizer = MaskedAdamW([ours, bias], **OPTIONS)
    optimizer.hold(ours, keep)
    reference = torch.optim.AdamW([theirs, their_bias], fused=True, **OPTIONS)
    for step in range(8):
        gradient, along = torch.randn(ours.shape), torch.randn(48)
        ours.grad, bias.grad = gradient.clone(), along.clone()
        theirs.grad, their_bias.grad = gradient * keep, along.clone()
        for each in (optimizer, reference):
            each.param_groups[0]["lr"] = 1e-2 / (step + 1)  # a schedule, as the loop has
            each.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        assert torch.equal(bias, their_bias)
        assert not ours[~keep].any(), "pruned weights are exactly 0, whatever their gradient was"
    assert float((ours - masked(pattern, sparsity)[0]).detach()[keep].abs().max()) > 1e-2, "and the others have moved"
    for moments in ("exp_avg", "exp_avg_sq"):
        assert optimizer.state[ours][moments].shape == (int(keep.sum()),)
        torch.testing.assert_close(
            unpack(optimizer.state[ours][moments], keep), reference.state[theirs][moments], rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("shape", [(1, 1), (3, 341), (1, 1025), (257, 1023), (2, 65536), (129, 1030)])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.6, 1.0])
def test_every_size_and_share_is_stepped_as_torch_does(shape: tuple[int, int], share: float) -> None:
    """Sizes around those of the pieces and blocks that the extension works on; masks of nothing and of all."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(shape, generator=generator))
    keep = torch.rand(shape, generator=generator) < share
    optimizer = MaskedAdamW([weight], **OPTIONS)
    optimizer.hold(weight, keep)
    reference = nn.Parameter(weight.detach().clone())
    other = torch.optim.AdamW([reference], **OPTIONS)
    for _ in range(3):
        weight.grad = torch.randn(shape, generator=generator)
        reference.grad = weight.grad * keep
        optimizer.step()
        other.step()
    assert torch.equal(weight[~keep], torch.zeros(int((~keep).sum())))
    torch.testing.assert_close(weight[keep], reference[keep], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("largest", [0.5, 1e3])
def test_clipping_with_the_step_is_clipping_before_it(largest: float, way: str) -> None:
    weight, keep = masked("unstructured", 0.75, (70, 1029))
    bias = nn.Parameter(torch.ones(48))
    optimizer = MaskedAdamW([weight, bias], **OPTIONS)
    optimizer.hold(weight, keep)
    others = [nn.Parameter(p.detach().clone()) for p in (weight, bias)]
    reference = torch.optim.AdamW(others, **OPTIONS)
    for step in range(3):
        weight.grad, bias.grad = torch.randn(weight.shape), torch.randn(48)
        others[0].grad, others[1].grad = weight.grad * keep, bias.grad.clone()
        norm = nn.utils.clip_grad_norm_(others, largest)
        if optimizer.can_clip:
            assert optimizer.clip(largest) == pytest.approx(float(norm), rel=1e-6)
        else:
            assert way == "torch"
            optimizer.mask_gradients()
            nn.utils.clip_grad_norm_([weight, bias], largest)
        for each in (optimizer, reference):
            each.step()
        for ours, theirs in zip((weight, bias), others, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=f"step {step}")
    assert (float(norm) > largest) == (largest < 1) and optimizer.scale == 1


def test_moments_of_a_half_and_a_quarter_take_a_half_and_a_quarter() -> None:
    for sparsity in (0.5, 0.75):
        weight, keep = masked("unstructured", sparsity)
        optimizer = MaskedAdamW([weight], **OPTIONS)
        optimizer.hold(weight, keep)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        state = optimizer.state[weight]
        assert sum(t.untyped_storage().nbytes() for t in (state["exp_avg"], state["exp_avg_sq"])) == (
            (1 - sparsity) * 2 * 4 * weight.numel()
        )


def test_a_mask_can_change_between_steps() -> None:
    weight, keep = masked("unstructured", 0.5)
    optimizer = MaskedAdamW([weight], **OPTIONS)
    optimizer.hold(weight, keep)
    weight.grad = torch.randn(weight.shape)
    optimizer.step()
    before = unpack(optimizer.state[weight]["exp_avg"], keep)
    other = ~keep
    other[:24] = keep[:24]  # the upper half stays as it was
    optimizer.hold(weight, other)
    after = unpack(optimizer.state[weight]["exp_avg"], other)
    assert torch.equal(after[:24], before[:24]) and not after[24:].any(), "weights that come alive start from nothing"
    assert not weight[24:].any(), "weights that are pruned now are 0"
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert bool((weight[24:] != 0)[other[24:]].all()) and not weight[~other].any()


def test_masked_gradients_have_the_norm_of_what_is_trained() -> None:
    weight, keep = masked("2:4", None)
    optimizer = MaskedAdamW([weight], **OPTIONS)
    optimizer.hold(weight, keep)
    weight.grad = torch.full_like(weight, 3.0)
    optimizer.mask_gradients()
    assert float(weight.grad.norm()) == pytest.approx(3 * int(keep.sum()) ** 0.5)


def test_packing_is_undone_by_unpacking() -> None:
    weight, keep = masked("4:8", None)
    assert torch.equal(unpack(pack(weight, keep), keep), weight) and pack(weight, None) is weight
