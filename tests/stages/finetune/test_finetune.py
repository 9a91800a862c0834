"""Sparse fine-tuning: packing, losses, masks, schedule, exact resume."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsedraft.base.errors import UserError
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.stages.finetune import losses, masks
from sparsedraft.stages.finetune.loop import Settings, Task, cosine, count_steps, train
from sparsedraft.stages.finetune.objective import Objective
from sparsedraft.stages.finetune.passes import validate
from sparsedraft.text import bins
from sparsedraft.text.logits import answer_logits
from sparsedraft.text.sample import Sample
from training import samples, sparse

# ---- packing


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_bins_hold_every_sample_once_and_never_overflow(lengths: list[int]) -> None:
    groups = bins.first_fit(lengths, 40)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= 40 for group in groups)
    assert len(groups) <= 11 / 9 * -(-sum(lengths) // 40) + 1 or len(groups) <= len(lengths)


def test_packed_samples_do_not_see_each_other(tiny_llama) -> None:
    model, several = tiny_llama(), samples(4)
    with torch.no_grad():
        packed = answer_logits(model, bins.fill(several))
        alone = torch.cat([answer_logits(model, bins.fill([s])) for s in several])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_loss_is_on_the_answers_tokens_only(tiny_llama) -> None:
    model, sample = tiny_llama(), samples(1)[0]
    row = bins.fill([sample])
    assert row.tokens.tolist() == list(sample.answer_ids)
    with torch.no_grad():
        full = model(torch.tensor([[*sample.prompt_ids, *sample.answer_ids]])).logits[0]
    first = len(sample.prompt_ids)
    expected = torch.stack([full[first - 1 + i].log_softmax(-1)[t] for i, t in enumerate(sample.answer_ids)])
    torch.testing.assert_close(
        losses.nll(answer_logits(model, row), row.tokens), -expected.mean(), rtol=1e-4, atol=1e-5
    )


def test_long_answers_are_cut_and_long_prompts_dropped() -> None:
    kept, dropped = bins.truncate([Sample("a", [1] * 5, [2] * 9), Sample("b", [1] * 10, [2])], 10)
    assert dropped == 1 and [len(s) for s in kept] == [10] and len(kept[0].answer_ids) == 5


def test_every_epoch_trains_on_every_sample_once() -> None:
    several = samples(30)
    groups = len(bins.first_fit([len(s) for s in several], 64))
    stream = bins.steps(several, 64, 1, seed=5)
    for _ in range(2):
        seen = sum(sum(len(row.tokens) for row in next(stream)) for _ in range(groups))
        assert seen == sum(len(s.answer_ids) for s in several)


# ---- masks and the loop


def test_pruned_weights_are_exactly_zero_after_every_step(tiny_llama, tmp_path: Path) -> None:
    model = tiny_llama()
    before = {name: w.clone() for name, w in model.named_parameters()}
    keep = sparse(model)
    assert 0.45 < sum(int((~k).sum()) for k in keep.values()) / sum(k.numel() for k in keep.values()) < 0.55
    checked = []

    def check(step: int) -> None:
        checked.append(step)
        assert masks.broken(model, keep) == []

    settings = Settings(learning_rate=1e-2, weight_decay=0.1, tokens=2000, sequence_length=64, rows_per_step=2)
    train(Task(model, keep, samples(20), samples(4, 9)), settings, tmp_path, after_step=check)
    assert len(checked) >= 10
    name, mask = next(iter(keep.items()))
    moved = decoder_linears(model)[name].weight.detach() != before[f"{name}.weight"]
    assert bool(moved[mask].float().mean() > 0.9), "the weights that are left are trained"


def test_broken_finds_a_revived_weight(tiny_llama) -> None:
    model = tiny_llama()
    keep = sparse(model)
    name = next(iter(keep))
    where = (~keep[name]).nonzero()[0]
    with torch.no_grad():
        decoder_linears(model)[name].weight[tuple(where)] = 1e-30
    assert masks.broken(model, keep) == [name]


@pytest.mark.parametrize("loss", losses.NAMES)
def test_training_brings_the_drafter_nearer(loss: str, tiny_llama, tmp_path: Path) -> None:
    target, model = tiny_llama(), tiny_llama()
    keep = sparse(model, 0.2)
    settings = Settings(loss=loss, learning_rate=3e-3, tokens=12000, sequence_length=128, rows_per_step=2)
    result = train(Task(model, keep, samples(40), samples(40), teacher=target), settings, tmp_path)
    assert result["val_loss"][1] < 0.9 * result["val_loss"][0]


def test_resumed_training_equals_uninterrupted(tiny_llama, tmp_path: Path) -> None:
    settings = Settings(learning_rate=1e-3, tokens=4000, sequence_length=64, rows_per_step=1, save_every=4)

    def one(folder: Path, die_at: int | None = None):
        folder.mkdir(exist_ok=True)
        model = tiny_llama()
        keep = sparse(model)

        def maybe_die(step: int) -> None:
            if step == die_at:
                raise KeyboardInterrupt

        result = train(Task(model, keep, samples(20), samples(4, 9)), settings, folder, after_step=maybe_die)
        return result, model.state_dict(), (folder / "log.jsonl").read_bytes()

    whole = one(tmp_path / "whole")
    for die_at in (2, 9, 17):  # before the first saved state, between two, and later
        with pytest.raises(KeyboardInterrupt):
            one(tmp_path / "cut", die_at)
    resumed = one(tmp_path / "cut")
    assert whole[0] == resumed[0] and whole[2] == resumed[2]
    assert all(torch.equal(whole[1][name], tensor) for name, tensor in resumed[1].items())


def test_diverging_loss_is_the_users_to_mend(tiny_llama, tmp_path: Path) -> None:
    settings = Settings.model_construct(learning_rate=1e30, clip=1e30, tokens=3000, sequence_length=64, warmup=0)
    with pytest.raises(UserError, match=r"--learning-rate 1e\+30 makes the loss diverge"):
        train(Task(tiny_llama(), {}, samples(20), samples(4)), settings, tmp_path)


def test_frozen_embeddings_do_not_move(tiny_llama, tmp_path: Path) -> None:
    model = tiny_llama()
    before = model.get_input_embeddings().weight.detach().clone()
    settings = Settings(learning_rate=1e-2, tokens=1000, sequence_length=64, train_embeddings=False)
    train(Task(model, {}, samples(20), samples(4)), settings, tmp_path)
    assert torch.equal(before, model.get_input_embeddings().weight)


def test_validation_alpha_is_the_share_of_argmax_matches(tiny_llama) -> None:
    model, several = tiny_llama(), samples(3)
    own = model.generate(torch.tensor([several[0].prompt_ids]), max_new_tokens=9, do_sample=False, eos_token_id=None)
    several.append(Sample("own", several[0].prompt_ids, own[0, len(several[0].prompt_ids) :].tolist()))
    matches = total = 0
    for s in several:
        with torch.no_grad():
            logits = model(torch.tensor([[*s.prompt_ids, *s.answer_ids]])).logits[0]
        for i, token in enumerate(s.answer_ids):
            matches += int(logits[len(s.prompt_ids) - 1 + i].argmax() == token)
            total += 1
    assert 9 <= matches < total
    assert validate(model, Objective(), [bins.fill(several)])["val_alpha"] == matches / total


def test_gradients_are_clipped_to_the_norm(tiny_llama, tmp_path: Path) -> None:
    """AdamW's first step moves a weight by lr · g / (|g| + 1e-8): a gradient clipped far below 1e-8 moves nothing."""
    moved = []
    for clip in (1.0, 1e-13):
        model = tiny_llama()
        before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
        folder = tmp_path / str(clip)
        folder.mkdir()
        settings = Settings(learning_rate=1e-3, clip=clip, tokens=64, sequence_length=64, warmup=0)
        train(Task(model, {}, samples(20), samples(4)), settings, folder)
        moved.append(float((model.model.layers[0].mlp.up_proj.weight.detach() - before).abs().max()))
    assert moved[0] > 5e-4 and moved[1] < 1e-7


def test_cosine_warms_up_and_ends_at_nothing() -> None:
    factors = [cosine(i, 100, 0.1) for i in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == factors[9] == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True) and factors[-1] < 0.001


def test_token_budget_becomes_steps() -> None:
    several = samples(50)
    once = count_steps(several, Settings(sequence_length=64, rows_per_step=1))
    tokens = 3 * sum(len(s) for s in several)
    assert count_steps(several, Settings(sequence_length=64, rows_per_step=1, tokens=tokens)) == 3 * once
    assert once == len(bins.first_fit([len(s) for s in several], 64))


def test_log_holds_steps_and_validations(tiny_llama, tmp_path: Path) -> None:
    settings = Settings(tokens=1500, sequence_length=64, rows_per_step=1, validate_every=10)
    result = train(Task(tiny_llama(), {}, samples(20), samples(4)), settings, tmp_path)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in log if "loss" in e] == list(range(1, result["steps"] + 1))
    assert [e["step"] for e in log if "val_alpha" in e] == [
        0,
        10,
        20,
        *([result["steps"]] if result["steps"] % 10 else []),
    ]
