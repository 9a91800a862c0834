"""Mask re-selection: the pattern holds exactly whatever moves, and a resumed run equals an uninterrupted one."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsedraft.maths.masks import keep_mask, obeys
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.stages.finetune import masks
from sparsedraft.stages.finetune.adamw import MaskedAdamW, unpack
from sparsedraft.stages.finetune.loop import Settings, Task, train
from sparsedraft.stages.finetune.reselect import Schedule, reselect, swapped_mask
from training import samples

PATTERNS = ("unstructured", "2:4", "4:8", "2:8", "1:4")


def problem(pattern: Pattern, rows: int, groups: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weight, dense gradient, keep) of a pruned matrix; some survivors are 0, some gradients too."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, groups * (pattern.m or 8))
    weight, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    keep = keep_mask(pattern, weight.abs(), pattern.resolve(None))
    keep &= torch.rand(shape, generator=generator) > 0.05  # SparseGPT zeroes dead inputs beyond the pattern
    gradient[torch.rand(shape, generator=generator) < 0.1] = 0
    return weight * keep, gradient, keep


@pytest.mark.parametrize("name", PATTERNS)
@given(
    rows=st.integers(1, 6),
    groups=st.integers(1, 6),
    seed=st.integers(0, 9999),
    share=st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.99]),
)
@settings(max_examples=60, deadline=None)
def test_every_group_keeps_its_count(name: str, rows: int, groups: int, seed: int, share: float) -> None:
    pattern = Pattern.parse(name)
    weight, gradient, keep = problem(pattern, rows, groups, seed)
    new = swapped_mask(weight, gradient, keep, pattern, share)
    size = pattern.m or keep.numel()
    assert torch.equal(new.reshape(-1, size).sum(-1), keep.reshape(-1, size).sum(-1))
    dropped, grown = keep & ~new, new & ~keep
    assert int(dropped.sum()) == int(grown.sum()) <= round(share * int(keep.sum()))
    assert bool((gradient[grown] != 0).all()), "what has no gradient never moves off 0"
    if share <= 0.1 and not pattern.m:
        possible = min(int(keep.sum()), int((gradient[~keep] != 0).sum()))
        assert int(grown.sum()) == min(round(share * int(keep.sum())), possible)


@given(seed=st.integers(0, 9999), share=st.sampled_from([0.05, 0.2, 0.5]))
@settings(max_examples=40, deadline=None)
def test_unstructured_drops_the_smallest_and_grows_the_largest(seed: int, share: float) -> None:
    weight, gradient, keep = problem(Pattern(), 5, 4, seed)
    new = swapped_mask(weight, gradient, keep, Pattern(), share)
    dropped, grown = keep & ~new, new & ~keep
    if dropped.any():
        assert float(weight[dropped].abs().max()) <= float(weight[keep & new].abs().min())
        left = ~keep & ~new
        assert float(gradient[grown].abs().min()) >= float(gradient[left].abs().max())


@given(seed=st.integers(0, 9999))
@settings(max_examples=40, deadline=None)
def test_groups_swap_their_own_smallest_for_their_own_largest(seed: int) -> None:
    pattern = Pattern(2, 4)
    weight, gradient, keep = problem(pattern, 4, 5, seed)
    new = swapped_mask(weight, gradient, keep, pattern, 0.3)
    for w, g, a, b in zip(*(t.reshape(-1, 4) for t in (weight.abs(), gradient.abs(), keep, new)), strict=True):
        out, into = a & ~b, b & ~a
        if out.any():
            assert float(w[out].max()) <= float(w[a & b].min() if (a & b).any() else torch.inf)
            rest = ~a & ~b
            assert float(g[into].min()) >= (float(g[rest].max()) if rest.any() else 0)


def test_schedule_falls_to_nothing_at_three_quarters() -> None:
    schedule = Schedule(5, 0.4, 100)
    shares = {step: schedule.at(step) for step in range(1, 101) if schedule.at(step)}
    assert list(shares) == list(range(5, 75, 5)) and list(shares.values()) == sorted(shares.values(), reverse=True)
    assert 0.39 < shares[5] < 0.4 and not any(Schedule(0, 0.4, 100).at(step) for step in range(1, 101))


@pytest.mark.parametrize("name", ["unstructured", "2:4"])
def test_weights_gradients_and_moments_follow_the_mask(name: str, tiny_llama) -> None:
    pattern, model = Pattern.parse(name), tiny_llama()
    keep = pruned(model, pattern)
    optimizer = MaskedAdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    linears = decoder_linears(model)
    for linear_name, mask in keep.items():
        optimizer.hold(linears[linear_name].weight, mask)
    for step in range(2):  # the second step has moments
        model(torch.arange(3, 90)[None]).logits.logsumexp(-1).sum().backward()
        count = reselect(model, dict.fromkeys(keep, pattern), optimizer, 0.2) if step else 0
        moments = {n: unpack(optimizer.state[w.weight]["exp_avg"], optimizer.keep[w.weight]) for n, w in linears.items()
                   } if step else {}  # fmt: skip
        optimizer.mask_gradients()
        optimizer.step()
    after = {n: optimizer.keep[linear.weight] for n, linear in linears.items()}
    assert count == sum(int((after[n] & ~keep[n]).sum()) for n in keep) > 1000
    for n, linear in linears.items():
        grown = after[n] & ~keep[n]
        for tensor in (linear.weight, linear.weight.grad):
            assert bool((tensor[~after[n]] == 0).all())
        assert bool((moments[n][grown] == 0).all()) and bool((moments[n][keep[n] & after[n]] != 0).any())
        assert bool((linear.weight[grown] != 0).all()), "a grown weight moves at once"


def pruned(model, pattern: Pattern) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        for linear in decoder_linears(model).values():
            linear.weight.mul_(keep_mask(pattern, linear.weight.abs(), pattern.resolve(None)))
    return masks.masks_of(model, list(decoder_linears(model)))


@pytest.mark.parametrize("name", ["unstructured", "2:4"])
def test_training_moves_the_mask_keeps_the_pattern_and_resumes(name: str, tiny_llama, tmp_path: Path) -> None:
    pattern = Pattern.parse(name)
    options = Settings(
        learning_rate=1e-3, tokens=2400, sequence_length=64, rows_per_step=2, save_every=4, reselect_every=3
    )

    def one(folder: Path, die_at: int | None = None):
        folder.mkdir(exist_ok=True)
        model = tiny_llama()
        keep = pruned(model, pattern)
        start = {name: mask.clone() for name, mask in keep.items()}
        changes: list[int] = []

        def watch(step: int) -> None:
            if step == die_at:
                raise KeyboardInterrupt
            if masks.broken(model, start):
                changes.append(step)

        patterns = dict.fromkeys(keep, pattern)
        result = train(
            Task(model, keep, samples(20), samples(4, 9), patterns=patterns), options, folder, after_step=watch
        )
        return result, model.state_dict(), masks.masks_of(model, list(keep)), start, changes

    whole = one(tmp_path / "whole")
    assert whole[4][0] == 3, "the first move"
    for name, linear in decoder_linears(tiny_llama()).items():
        assert obeys(whole[1][f"{name}.weight"], pattern) and int(whole[2][name].sum()) == int(whole[3][name].sum())
        assert int((whole[1][f"{name}.weight"] == 0).sum()) == linear.weight.numel() // 2
    for die_at in (5, 9):
        with pytest.raises(KeyboardInterrupt):
            one(tmp_path / "cut", die_at)
    resumed = one(tmp_path / "cut")
    assert whole[0] == resumed[0]
    assert all(torch.equal(whole[1][name], tensor) for name, tensor in resumed[1].items())
    assert all(torch.equal(whole[2][name], mask) for name, mask in resumed[2].items())


def test_early_stopping_goes_back_to_the_mask_of_the_best(tiny_llama, tmp_path: Path) -> None:
    model = tiny_llama()
    keep = pruned(model, Pattern())
    start = {name: mask.clone() for name, mask in keep.items()}
    options = Settings(
        learning_rate=1e-2, tokens=9000, sequence_length=64, reselect_every=2, patience=3, validate_every=2
    )
    moved_at: list[int] = []
    result = train(
        Task(model, keep, samples(20), samples(12)),
        options,
        tmp_path,
        after_step=lambda step: moved_at.append(step) if masks.broken(model, start) else None,
    )
    assert any(step > result["kept_step"] for step in moved_at), "the mask moved after the best validation"
    for name, linear in decoder_linears(model).items():
        assert int((linear.weight == 0).sum()) == linear.weight.numel() // 2, name
