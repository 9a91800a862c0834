"""The training loop beyond its first duty: arithmetic, memory for time, early stopping, divergence, the saved state."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sparsedraft.base import processes
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint, claims
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.stages.finetune import masks
from sparsedraft.stages.finetune.loop import Settings, Task, train
from sparsedraft.stages.finetune.objective import Objective
from sparsedraft.stages.finetune.passes import validate
from sparsedraft.text import bins, sample
from stages import distill, finetune, prune
from training import samples, sparse

SMALL = {"tokens": 1500, "sequence_length": 64, "rows_per_step": 2}
REAL = {"tokens": 3000, "sequence_length": 160, "rows_per_step": 2}  # for distilled data, whose prompts are longer


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(folder: Path) -> list[float]:
    return [entry["loss"] for entry in log_of(folder) if "loss" in entry]


@pytest.fixture(scope="module")
def data(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Distilled data of the tiny model."""
    out = tmp_path_factory.mktemp("data") / "data"
    distill(str(tiny_checkpoint), "demo:train", out, limit=40, max_new_tokens=8)
    return out


@pytest.fixture(scope="module")
def half(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    """The tiny model stored in bfloat16 and pruned to 2:4."""
    folder = tmp_path_factory.mktemp("half")
    checkpoint.save(checkpoint.load(tiny_checkpoint), tokenizer, folder / "stored", dtype=torch.bfloat16)
    prune(str(folder / "stored"), folder / "half", "demo:train", pattern="2:4", tokens=512, sequence_length=64)
    return folder / "half"


# ---- arithmetic


def test_bfloat16_moves_float32_weights_by_less_than_it_can_tell(tiny_llama, tmp_path: Path) -> None:
    """A dozen steps of at most 2e-6 on weights around 0.2, where neighbours in bfloat16 are 2^-10 apart, are kept."""
    model = tiny_llama()
    keep = sparse(model)
    before = {name: linear.weight.detach().clone() for name, linear in decoder_linears(model).items()}
    settings = Settings(learning_rate=2e-6, **SMALL)
    with processes.open_accelerator("cpu", "bfloat16") as accelerator:
        train(Task(model, keep, samples(20), samples(4, 9)), settings, tmp_path, accelerator=accelerator)
    for name, linear in decoder_linears(model).items():
        weight, old = linear.weight.detach()[keep[name]], before[name][keep[name]]
        assert weight.dtype == torch.float32
        assert float((weight != old).float().mean()) > 0.95, "nearly all weights moved"
        assert float((weight.bfloat16() == old.bfloat16()).float().mean()) > 0.9, "by less than bfloat16 can tell"
    assert masks.broken(model, keep) == []


def test_bfloat16_computes_in_bfloat16_and_learns_the_same(tiny_llama, tmp_path: Path) -> None:
    curves = {}
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        model = tiny_llama()
        keep = sparse(model)
        with processes.open_accelerator("cpu", dtype) as accelerator:
            settings = Settings(learning_rate=1e-3, **SMALL)
            train(Task(model, keep, samples(20), samples(4, 9)), settings, tmp_path / dtype, accelerator=accelerator)
        curves[dtype] = losses_of(tmp_path / dtype)
    assert curves["bfloat16"] == pytest.approx(curves["float32"], rel=0.02)
    assert min(abs(a / b - 1) for a, b in zip(*curves.values(), strict=True)) > 1e-7, "not the same arithmetic"


def test_bfloat16_writes_the_checkpoint_as_the_drafter_was_stored(half: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finetune(str(half), str(data), out, settings=Settings(**REAL), validation_prompts=4, dtype="bfloat16")
    with safe_open(out / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert claims.check_claims(checkpoint.load(out), out) == claims.claim_of(half)


def test_float16_is_refused_in_one_sentence(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dtype float16 is no arithmetic to train in: give float32, or bfloat16"):
        finetune(str(tiny_checkpoint), str(data), tmp_path / "out", settings=Settings(), dtype="float16")
    assert not any(tmp_path.iterdir())


# ---- gradient checkpointing


def test_gradient_checkpointing_keeps_the_numbers_and_drops_the_activations(tiny_llama, tmp_path: Path) -> None:
    seen = {}
    for on in (False, True):
        model = tiny_llama()
        keep = sparse(model)
        settings = Settings(learning_rate=1e-3, gradient_checkpointing=on, **SMALL)
        (tmp_path / str(on)).mkdir()
        train(Task(model, keep, samples(20), samples(4, 9)), settings, tmp_path / str(on))
        stored = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal stored
            stored += tensor.numel()
            return tensor

        model.train()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss, _ = Objective()(model, bins.fill(samples(4)))
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        seen[on] = (losses_of(tmp_path / str(on)), float(loss), gradients, stored)
    assert seen[True][0] == pytest.approx(seen[False][0], rel=1e-6) and seen[True][1] == pytest.approx(seen[False][1])
    for name, gradient in seen[False][2].items():
        torch.testing.assert_close(seen[True][2][name], gradient, rtol=1e-4, atol=1e-6)
    assert seen[True][3] < 0.5 * seen[False][3]


# ---- early stopping


def early(tiny_llama, folder: Path, die_at: int | None = None, **changes):
    """Train at a rate that is too high, so that the best is not the last; (result, model)."""
    folder.mkdir(exist_ok=True)
    model = tiny_llama()
    keep = sparse(model)
    wanted = {"learning_rate": 1e-2, "tokens": 9000, "patience": 3, "validate_every": 2, "save_every": 3, **changes}
    settings = Settings(sequence_length=64, rows_per_step=2, **wanted)

    def maybe_die(step: int) -> None:
        if step == die_at:
            raise KeyboardInterrupt

    result = train(Task(model, keep, samples(20), samples(12)), settings, folder, after_step=maybe_die)
    assert masks.broken(model, keep) == []
    return result, model


def test_early_stopping_keeps_the_best_validation(tiny_llama, tmp_path: Path) -> None:
    result, model = early(tiny_llama, tmp_path)
    checks = [entry for entry in log_of(tmp_path) if "val_alpha" in entry]
    best = max(checks, key=lambda entry: entry["val_alpha"])
    assert 0 < best["step"] < checks[-1]["step"], "the case is one where the last is not the best"
    assert result["kept_step"] == best["step"] and result["steps"] == best["step"] + 3 * 2, "three validations later"
    assert result["val_alpha"] == [checks[0]["val_alpha"], best["val_alpha"]]
    rows = [bins.fill(samples(12)[start : start + 2]) for start in range(0, 12, 2)]
    assert validate(model, Objective(), rows)["val_alpha"] == pytest.approx(best["val_alpha"], abs=1e-9)


def test_early_stopping_returns_a_drafter_that_only_got_worse_as_it_was(tiny_llama, tmp_path: Path) -> None:
    target = tiny_llama()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    own = [  # what the drafter itself would say: it starts at α = 1
        sample.Sample(s.id, s.prompt_ids, target.generate(
            torch.tensor([s.prompt_ids]), max_new_tokens=8, do_sample=False, eos_token_id=None
        )[0, len(s.prompt_ids):].tolist())
        for s in samples(4)
    ]  # fmt: skip
    settings = Settings(learning_rate=1e-2, tokens=9000, sequence_length=64, patience=2, validate_every=3)
    result = train(Task(target, {}, samples(20), own), settings, tmp_path)
    assert result["kept_step"] == 0 and result["steps"] == 6 and result["val_alpha"] == [1.0, 1.0]
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_early_stopping_survives_kills(tiny_llama, tmp_path: Path) -> None:
    whole, model = early(tiny_llama, tmp_path / "whole")
    cuts = [3, whole["kept_step"] + 1, whole["steps"] - 1, whole["steps"]]
    for die_at in cuts:
        with pytest.raises(KeyboardInterrupt):
            early(tiny_llama, tmp_path / "cut", die_at)
    resumed, again = early(tiny_llama, tmp_path / "cut")
    assert resumed == whole and log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_no_patience_trains_to_the_end_and_keeps_the_last(tiny_llama, tmp_path: Path) -> None:
    result, _ = early(tiny_llama, tmp_path, patience=0, tokens=2000)
    assert result["kept_step"] == result["steps"] == log_of(tmp_path)[-1]["step"]
    assert not list(tmp_path.glob(".best-*"))


# ---- divergence


RISING = Settings.model_construct(
    learning_rate=1e8, clip=1e30, warmup=1.0, tokens=9000, sequence_length=160, save_every=1
)


def test_divergence_leaves_the_last_good_weights_as_a_checkpoint(half: Path, data: Path, tmp_path: Path) -> None:
    out, place = tmp_path / "out", tmp_path / "out.last-good"
    with pytest.raises(UserError) as raised:
        finetune(str(half), str(data), out, settings=RISING, validation_prompts=4)
    said = str(raised.value)
    assert "makes the loss diverge at step" in said and str(place) in said and "\n" not in said
    saved = json.loads((place / "result.json").read_text())["step"]
    assert f"after step {saved}" in said and saved >= 1
    model = checkpoint.load(place)
    assert claims.check_claims(model, place) == claims.claim_of(half)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["out.last-good"], "nothing to trip over"
    calm = Settings(learning_rate=1e-5, **REAL)
    finetune(str(half), str(data), out, settings=calm, validation_prompts=4)  # no --overwrite is needed


@pytest.mark.parametrize("patience", [0, 2])
def test_divergence_before_anything_was_saved_says_so(patience: int, half: Path, data: Path, tmp_path: Path) -> None:
    wild = Settings.model_construct(
        learning_rate=1e30, clip=1e30, warmup=0, tokens=9000, sequence_length=160, patience=patience
    )
    with pytest.raises(UserError, match=r"diverge at step 2: lower it \(no earlier state was saved\)"):
        finetune(str(half), str(data), tmp_path / "out", settings=wild, validation_prompts=4)
    assert not any(tmp_path.iterdir())


def test_a_gradient_that_is_not_finite_is_a_divergence_too(tiny_llama, tmp_path: Path) -> None:
    model = tiny_llama()
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match="diverge at step 1"):
        train(Task(model, {}, samples(20), samples(4)), Settings(**SMALL), tmp_path)
    assert bool(torch.isfinite(weight).all()), "no step was made with it"


# ---- the state


def test_saved_state_holds_masks_and_only_the_living_moments(tiny_llama, tmp_path: Path) -> None:
    model = tiny_llama()
    keep = sparse(model, 0.75)
    train(Task(model, keep, samples(20), samples(4, 9)), Settings(**SMALL), tmp_path)
    with safe_open(tmp_path / ".state.safetensors", "pt") as file:
        for name, mask in keep.items():
            assert torch.equal(file.get_tensor(f"keep.{name}.weight"), mask)
            for moment in ("first", "second"):
                assert file.get_tensor(f"{moment}.{name}.weight").shape == (int(mask.sum()),)
        stored = set(file.keys())
    assert {name.removeprefix("weight.") for name in stored if name.startswith("weight.")} == {
        name for name, _ in model.named_parameters()
    }, "a tied weight once"


def test_masks_come_from_the_state_where_there_is_one(tiny_llama, tmp_path: Path) -> None:
    """A weight that training brought to exactly 0 is alive; one that was pruned stays pruned."""
    settings = Settings(save_every=2, **SMALL)
    model = tiny_llama()
    keep = sparse(model)

    def die(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Task(model, keep, samples(20), samples(4, 9)), settings, tmp_path, after_step=die)
    other = {name: torch.ones_like(mask) for name, mask in keep.items()}  # what a caller might think now
    train(Task(model, other, samples(20), samples(4, 9)), settings, tmp_path)
    assert masks.broken(model, keep) == []


def test_resume_repeats_dropout(tiny_llama, tmp_path: Path) -> None:
    settings = Settings(learning_rate=1e-3, save_every=3, **SMALL)

    def one(folder: Path, die_at: int | None = None) -> list[float]:
        folder.mkdir(exist_ok=True)

        def maybe_die(step: int) -> None:
            if step == die_at:
                raise KeyboardInterrupt

        train(
            Task(tiny_llama(attention_dropout=0.2), {}, samples(20), samples(4)), settings, folder, after_step=maybe_die
        )
        return losses_of(folder)

    whole = one(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        one(tmp_path / "cut", 5)
    torch.randn(7)  # the generator is somewhere else
    assert one(tmp_path / "cut") == whole


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_embeddings_have_no_moments_and_do_not_move(tied: bool, tiny_llama, tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    ends = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    before = [end.detach().clone() for end in ends]
    settings = Settings(learning_rate=1e-2, train_embeddings=False, weight_decay=0.1, **SMALL)
    train(Task(model, sparse(model), samples(20), samples(4)), settings, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, ends, strict=True))
    with safe_open(tmp_path / ".state.safetensors", "pt") as file:
        moving = [name for name in file.keys() if name.startswith("first.")]  # noqa: SIM118
    assert moving and not [name for name in moving if "embed" in name or "lm_head" in name]
