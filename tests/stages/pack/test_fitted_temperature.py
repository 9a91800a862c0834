"""The drafter's own temperature in its folder: fitted by `pack` and `finetune`, carried along, and shown."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from across import tiny_vocabulary
from sparsedraft.base.errors import UserError
from sparsedraft.maths.temperature import accepted
from sparsedraft.models import checkpoint
from sparsedraft.models.config import drafting
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.native.loading import load
from sparsedraft.stages.finetune.loop import Settings
from sparsedraft.text import bins, dataset
from sparsedraft.text.logits import answer_logits
from sparsedraft.text.sample import held_out
from stages import distill, finetune, inspect, pack, prune
from tiny import build_llama, build_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, its data (with and without log-probabilities), and a drafter that is flatter and noisy."""
    folder, tokenizer = tmp_path_factory.mktemp("place"), build_tokenizer()
    target = build_llama(seed=1)
    with torch.no_grad():
        target.lm_head.weight *= 12  # of random weights all tokens are about equally likely
    checkpoint.save(target, tokenizer, folder / "target")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for linear in decoder_linears(target).values():
            linear.weight += 0.1 * linear.weight.std() * torch.randn(linear.weight.shape, generator=generator)
        target.lm_head.weight *= 0.6
    checkpoint.save(target, tokenizer, folder / "flat")
    options = {"max_new_tokens": 12, "limit": 12, "batch_size": 8, "temperature": 1.0}
    distill(str(folder / "target"), "demo:train", folder / "data", top_k_logprobs=16, **options)
    distill(str(folder / "target"), "demo:train", folder / "hard", **options)
    return folder


def alpha(drafter: Path, place: Path, prompts: int, temperature: float) -> float:
    """Mean acceptance by the whole distributions, over the validation prompts of the data."""
    tokenizer = checkpoint.load_tokenizer(drafter)
    samples = [*dataset.samples(place / "data", tokenizer)]
    q, p, total, n = load(drafter), load(place / "target"), 0.0, 0
    with torch.no_grad():
        for sample in (s for s in samples if s.prompt_id in held_out(samples, prompts)):
            row = bins.fill([sample])
            chances = answer_logits(p, row).softmax(-1)
            total += float(accepted(chances, answer_logits(q, row), [temperature])[0])
            n += len(chances)
    return total / n


def test_pack_fits_it_with_the_target_and_with_what_is_stored(place: Path, tmp_path: Path) -> None:
    fits = {"calibrate_temperature": place / "data", "validation_prompts": 6}
    found = {}
    for name, options in (("whole", {"teacher": str(place / "target")}), ("stored", {})):
        result = pack(str(place / "flat"), tmp_path / name, **fits, **options)
        own = drafting.read(tmp_path / name)
        assert own is not None and result["drafting"]["temperature"] == own.temperature < 0.9
        assert own.alpha is not None and own.alpha[1] > own.alpha[0] and own.places
        assert inspect(str(tmp_path / name))["drafter_temperature"] == own.temperature
        found[name] = own
    whole, stored = found["whole"], found["stored"]
    assert (whole.target, stored.target) == ("whole", "top-k") and whole.places == stored.places
    assert whole.alpha == pytest.approx(
        [alpha(tmp_path / "whole", place, 6, t) for t in (1, whole.temperature)], abs=1e-4
    )
    assert stored.alpha[0] >= whole.alpha[0] - 1e-3, "the likeliest alone bound it from above"
    assert abs(stored.temperature - whole.temperature) <= 0.1
    again = pack(str(place / "flat"), tmp_path / "stored", **fits)
    assert again["drafting"] == stored.model_dump(exclude_none=True) | {"alpha": [*stored.alpha]}
    with pytest.raises(UserError, match="changed: temperature"):
        pack(str(place / "flat"), tmp_path / "stored", **{**fits, "validation_prompts": 5})


def test_pack_takes_it_along_and_nothing_else_does(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "flat", tmp_path / "own")
    drafting.write(tmp_path / "own", drafting.Drafting(temperature=0.77, places=3))
    pack(str(tmp_path / "own"), tmp_path / "packed")
    assert (tmp_path / "packed/drafting.json").read_bytes() == (tmp_path / "own/drafting.json").read_bytes()
    pack(str(place / "flat"), tmp_path / "without")
    assert not (tmp_path / "without/drafting.json").exists()
    assert inspect(str(tmp_path / "without"))["drafter_temperature"] is None
    prune(str(tmp_path / "own"), tmp_path / "half", "demo:train", tokens=512, sequence_length=64)
    assert not (tmp_path / "half/drafting.json").exists(), "what is pruned drafts otherwise"


@pytest.mark.parametrize(
    ("data", "loss", "taught"), [("data", "nll", False), ("data", "tvd", False), ("hard", "kl", True)]
)
def test_finetune_fits_it_on_its_validation(place: Path, tmp_path: Path, data: str, loss: str, taught: bool) -> None:
    settings = Settings(sequence_length=256, tokens=200, learning_rate=1e-6, loss=loss)
    models = {"teacher": str(place / "target")} if taught else {}
    out = tmp_path / "out"
    result = finetune(str(place / "flat"), str(place / data), out, settings=settings, validation_prompts=4, **models)
    own = drafting.read(out)
    assert own is not None and own.alpha is not None and own.temperature < 0.9
    assert own.target == ("whole" if taught else "top-k") and inspect(str(out))["drafter_temperature"] < 0.9
    assert result["drafting"]["temperature"] == own.temperature and tuple(result["drafting"]["alpha"]) == own.alpha
    exact = [alpha(out, place, 4, t) for t in (1.0, own.temperature)]
    assert exact[1] > exact[0], "accepted more by the whole distributions, too"
    if taught:
        assert own.alpha == pytest.approx(exact, abs=1e-4)
    else:
        assert all(bound >= known - 1e-3 for bound, known in zip(own.alpha, exact, strict=True))
    pack(str(out), tmp_path / "packed", weights="f16")
    assert drafting.read(tmp_path / "packed") == own


def test_finetune_fits_nothing_where_nothing_says_what_p_is(place: Path, tmp_path: Path) -> None:
    settings = Settings(sequence_length=256, tokens=200)
    result = finetune(
        str(place / "flat"), str(place / "hard"), tmp_path / "out", settings=settings, validation_prompts=4
    )
    assert result["drafting"] is None and drafting.read(tmp_path / "out") is None


def test_what_pack_refuses_of_it(place: Path, tmp_path: Path) -> None:
    flat, target = str(place / "flat"), str(place / "target")
    other = build_llama(vocab_size=3, layers=1)
    checkpoint.save(other, tiny_vocabulary(["a", "b", "c"], []), tmp_path / "other")
    for model, options, message in (
        (flat, {"teacher": target}, r"--teacher .* is not asked anything without --calibrate-temperature"),
        (flat, {"calibrate_temperature": place / "hard"}, r"hard holds no log-probabilities: give the target as --tea"),
        (flat, {"calibrate_temperature": place / "target"}, r"is no distilled data folder"),
        (flat, {"calibrate_temperature": place / "data", "teacher": flat}, r"--teacher .*flat is not the model that"),
        (str(tmp_path / "other"), {"calibrate_temperature": place / "data"}, r"is of another tokenizer than"),
    ):
        with pytest.raises(UserError, match=message):
            pack(model, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists() and not [*tmp_path.glob(".out*")]


def test_a_fitted_folder_is_another_input(place: Path, tmp_path: Path) -> None:
    """The record counts as content: what was made of a folder without it is not what is made of one with it."""
    shutil.copytree(place / "flat", tmp_path / "own")
    pack(str(tmp_path / "own"), tmp_path / "packed")
    drafting.write(tmp_path / "own", drafting.Drafting(temperature=0.9))
    with pytest.raises(UserError, match="changed: model"):
        pack(str(tmp_path / "own"), tmp_path / "packed")
    assert json.loads((tmp_path / "own/drafting.json").read_text()) == {"temperature": 0.9}
