"""The stage `finetune`: what it refuses, and that every option ends in a checkpoint that holds what it claims."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsedraft.base.errors import UserError
from sparsedraft.maths.masks import obeys
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models import checkpoint, claims, rounded
from sparsedraft.models.config.sparsity import groups_of
from sparsedraft.models.decoder import count_zeros, decoder_linears
from sparsedraft.stages.finetune.loop import Settings
from sparsedraft.stages.finetune.stage import split
from sparsedraft.text.sample import Sample
from stages import distill, finetune, prune

SMALL = {"tokens": 512, "sequence_length": 64}
BASE = {"sequence_length": 128, "tokens": 1000, "rows_per_step": 2}


@pytest.fixture(scope="module")
def place(tiny_llama, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target, its data (with and without log-probabilities), and pruned drafters."""
    folder = tmp_path_factory.mktemp("place")
    checkpoint.save(tiny_llama(seed=1), tokenizer, folder / "target")
    checkpoint.save(tiny_llama(), tokenizer, folder / "dense")
    options = {"max_new_tokens": 12, "limit": 24, "batch_size": 8}
    distill(str(folder / "target"), "demo:train", folder / "data", top_k_logprobs=8, **options)
    distill(str(folder / "target"), "demo:train", folder / "hard", **options)
    prune(str(folder / "dense"), folder / "half", "demo:train", **SMALL)
    prune(str(folder / "dense"), folder / "2of4", "demo:train", pattern="2:4", **SMALL)
    return folder


def tuned(place: Path, out: Path, drafter: str = "half", data: str = "data", **options: object) -> dict:
    models = {key: str(place / str(options.pop(key))) for key in ("teacher", "feature_teacher") if key in options}
    return finetune(
        str(place / drafter),
        str(place / data),
        out,
        settings=Settings(**{**BASE, **options}),
        validation_prompts=4,
        **models,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "tvd", "nll_weight": 0.3},
        {"loss": "reverse-kl", "data": "hard", "teacher": "target", "on_policy": 0.5},
        {"loss": "kl", "teacher": "target", "feature_teacher": "dense", "feature_weight": 1.0, "quantize": "int4"},
        {"reselect_every": 2, "reselect_share": 0.3},
        {"reselect_every": 2, "reselect_share": 0.3, "drafter": "2of4", "quantize": "int8"},
    ],
    ids=["stored", "on-policy", "features", "moves", "moves-2of4"],
)
def test_every_option_ends_in_a_checkpoint_that_holds_its_claim(options: dict, place: Path, tmp_path: Path) -> None:
    result = tuned(place, tmp_path / "out", **dict(options))
    assert result["steps"] >= 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    claim = json.loads((tmp_path / "out" / "sparsity.json").read_text())
    start = checkpoint.load(place / options.get("drafter", "half"))
    changed = 0
    for name, linear in decoder_linears(model).items():
        before = decoder_linears(start)[name].weight == 0
        zeros = count_zeros(linear.weight)
        assert claim["linears"][name] == zeros == int(before.sum()), "neither more nor fewer than claimed"
        changed += int((before & (linear.weight != 0)).sum())
    assert (changed > 0) == ("reselect_every" in options)
    assert ("quantization" in result) == ("quantize" in options)
    again = tuned(place, tmp_path / "out", **dict(options))
    assert again == result, "a finished command does nothing"


def test_on_policy_training_resumes_to_the_same_bytes(place: Path, tmp_path: Path, monkeypatch) -> None:
    from sparsedraft.stages.finetune import loop

    options = {"loss": "kl", "teacher": "target", "on_policy": 0.5, "save_every": 2, "learning_rate": 1e-3}
    rewrite, asked = loop.rewrite, []
    monkeypatch.setattr(loop, "rewrite", lambda *args, **given: asked.append(given["step"]) or rewrite(*args, **given))
    result = tuned(place, tmp_path / "whole", **dict(options))
    assert asked == list(range(1, result["steps"] + 1)), "each step has draws of its own"
    step, count = loop.add_gradients, []

    def dies(*args):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(loop, "add_gradients", dies)
    with pytest.raises(KeyboardInterrupt):
        tuned(place, tmp_path / "cut", **dict(options))
    tuned(place, tmp_path / "cut", **dict(options))
    for name in ("model.safetensors", "log.jsonl", "result.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    tuned(place, tmp_path / "off", **{**options, "on_policy": 0.0})
    assert (tmp_path / "off" / "log.jsonl").read_bytes() != (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_a_claim_is_counted_again_where_a_survivor_became_zero(tiny_llama) -> None:
    from sparsedraft.stages.finetune.stage import recounted

    model = tiny_llama()
    claim = {"pattern": "unstructured", "sparsity": 0.0, "linears": dict.fromkeys(decoder_linears(model), 0)}
    with torch.no_grad():
        decoder_linears(model)["model.layers.0.mlp.up_proj"].weight[:2] = 0
    found = recounted(claim, model.state_dict(), torch.float32)
    assert found["linears"]["model.layers.0.mlp.up_proj"] == 128 and sum(found["linears"].values()) == 128
    size = sum(linear.weight.numel() for linear in decoder_linears(model).values())
    assert found["sparsity"] == 128 / size and claim["sparsity"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, r"--loss mse is not known: choose one of nll, kl, reverse-kl, tvd"),
        ({"nll_weight": 0.5}, r"--nll-weight 0\.5 needs a loss that compares with the target"),
        ({"loss": "kl", "nll_weight": 1.5}, r"--nll-weight 1\.5 is not possible: give 0 to 1"),
        ({"loss": "kl", "nll_weight": float("nan")}, r"--nll-weight nan is not possible: give a finite number"),
        ({"on_policy": 0.5}, r"--on-policy 0\.5 needs a loss that compares"),
        ({"loss": "kl", "on_policy": 0.5}, r"--on-policy 0\.5 .* give the target as --teacher"),
        (
            {"loss": "kl", "on_policy": 1, "nll_weight": 1, "teacher": "target"},
            r"--nll-weight 1 leaves nothing to learn",
        ),
        (
            {"feature_weight": 1.0},
            r"--feature-weight 1 does nothing alone: give the dense drafter as --feature-teacher",
        ),
        ({"feature_teacher": "dense"}, r"--feature-teacher .* does nothing alone: give --feature-weight"),
        ({"feature_weight": -1.0}, r"--feature-weight -1 is not possible"),
        ({"teacher": "target"}, r"--teacher .*target is not asked anything under --loss nll: set --loss to one of kl"),
        ({"weight_decay": float("inf")}, r"--weight-decay inf is not possible: give a finite number"),
        ({"quantize": "int3"}, r"--quantize int3 is not known: choose one of none, int8, int4"),
        ({"reselect_every": -1}, r"--reselect-every -1 is not possible"),
        ({"reselect_every": 5, "reselect_share": 1.0}, r"--reselect-share 1 is not possible"),
        (
            {"reselect_every": 5, "drafter": "dense"},
            r"--reselect-every 5 moves a mask, and drafter .*dense claims none",
        ),
        ({"loss": "tvd", "data": "hard"}, r"--loss tvd compares distributions, and no row of the training data"),
        ({"loss": "kl", "teacher": "dense"}, r"--teacher .*dense is not the model that wrote .*data \(.*target did\)"),
    ],
)
def test_refusals(options: dict, message: str, place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        tuned(place, tmp_path / "out", **dict(options))
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("options", [{}, {"quantize": "int4"}, {"reselect_every": 1}], ids=str)
def test_a_rounded_drafter_trains_weights_whose_code_is_0(place: Path, tmp_path: Path, options: dict) -> None:
    """Its mask lies beside it: what it keeps may be 0 at the start. What was pruned stays 0."""
    prune(str(place / "dense"), tmp_path / "rounded", "demo:train", pattern="2:4", quantize="int4", **SMALL)
    start = decoder_linears(checkpoint.load(tmp_path / "rounded"))
    keep = {
        name: rounded.mask_of(tmp_path / "rounded", name, linear.weight.detach(), Pattern(2, 4))
        for name, linear in start.items()
    }
    asleep = {name: keep[name] & (linear.weight == 0) for name, linear in start.items()}
    assert all(bool(mask.any()) for mask in asleep.values())
    settings = Settings(**{**BASE, "learning_rate": 1e-3, **options})
    finetune(str(tmp_path / "rounded"), str(place / "data"), tmp_path / "out", settings=settings, validation_prompts=4)
    tuned_linears = decoder_linears(checkpoint.load(tmp_path / "out"))
    claim = claims.claim_of(tmp_path / "out")
    for name, linear in tuned_linears.items():
        assert obeys(linear.weight, Pattern(2, 4)) and count_zeros(linear.weight) >= claim["linears"][name]
        if options != {"reselect_every": 1}:
            assert bool((linear.weight[~keep[name]] == 0).all())
            assert float((linear.weight[asleep[name]] != 0).float().mean()) > 0.9
    assert not (tmp_path / "out" / rounded.BESIDE).exists() and not groups_of(tmp_path / "out")
    (tmp_path / "rounded" / rounded.BESIDE).unlink()
    with pytest.raises(UserError, match=r"mask of .* in quantization\.safetensors cannot be read .*: prune again"):
        finetune(str(tmp_path / "rounded"), str(place / "data"), tmp_path / "no", settings=settings)


def test_models_that_do_not_belong_together_are_refused(place: Path, tiny_llama, tokenizer, tmp_path: Path) -> None:
    import copy

    other = copy.deepcopy(tokenizer)
    other.add_tokens(["question"])
    checkpoint.save(tiny_llama(vocab_size=330), other, tmp_path / "stranger")
    checkpoint.save(tiny_llama(layers=2), tokenizer, tmp_path / "short")
    checkpoint.save(tiny_llama(vocab_size=200), tokenizer, tmp_path / "narrow")

    def refused(
        message: str, drafter: Path = place / "half", data: str = "data", models: dict | None = None, **options
    ):
        with pytest.raises(UserError, match=message) as raised:
            finetune(
                str(drafter),
                str(place / data),
                tmp_path / "out",
                settings=Settings(**{**BASE, **options}),
                validation_prompts=4,
                **{key: str(value) for key, value in (models or {}).items()},
            )
        assert "\n" not in str(raised.value)

    refused("--loss kl compares distributions over tokens, but drafter .*stranger", tmp_path / "stranger", loss="kl")
    refused("token [0-9]+, but the embedding of .*narrow has 200 rows", tmp_path / "narrow")
    for name, message in (("short", "has 2 layers of hidden size 64"), ("stranger", "has another tokenizer")):
        refused(
            f"--feature-teacher .*{name} {message}", models={"feature_teacher": tmp_path / name}, feature_weight=1.0
        )
    shutil.copytree(place / "data", tmp_path / "endpoint")
    note = json.loads((tmp_path / "endpoint" / "provenance.json").read_text())
    note["inputs"]["target"] = "https://host/v1 some-model"  # an endpoint wrote it: no hash to go by
    (tmp_path / "endpoint" / "provenance.json").write_text(json.dumps(note))
    refused("--teacher .*stranger has another tokenizer", data=str(tmp_path / "endpoint"), loss="kl",
            models={"teacher": tmp_path / "stranger"})  # fmt: skip


@pytest.mark.parametrize(("target", "drafter"), [(352, 320), (320, 352)])
def test_heads_padded_to_different_widths(target: int, drafter: int, tiny_llama, tokenizer, tmp_path: Path) -> None:
    """As Qwen2.5: one tokenizer, 152064 rows in the large models and 151936 in the small."""
    for name, rows, seed in (("target", target, 1), ("drafter", drafter, 0)):
        model = tiny_llama(seed=seed, vocab_size=rows)
        with torch.no_grad():
            model.get_input_embeddings().weight[320:] = 0  # padding: never the likeliest
        checkpoint.save(model, tokenizer, tmp_path / name)
    distill(str(tmp_path / "target"), "demo:train", tmp_path / "data", top_k_logprobs=300, max_new_tokens=8, limit=16)
    for name, options, teacher in (("stored", {}, None), ("teacher", {"on_policy": 0.5}, str(tmp_path / "target"))):
        settings = Settings(**{**BASE, "tokens": 1500, "loss": "kl", "learning_rate": 1e-3, **options})
        result = finetune(str(tmp_path / "drafter"), str(tmp_path / "data"), tmp_path / name, settings=settings,
                          validation_prompts=4, teacher=teacher)  # fmt: skip
        assert 0 < result["val_loss"][1] < result["val_loss"][0]


def test_a_validation_prompt_under_another_id_is_not_trained_on() -> None:
    samples = [Sample(f"{n}/0", [n, 1], [5, n], prompt_id=str(n)) for n in range(8)]
    _, held = split(samples, 3)
    twin = Sample("twin/0", held[0].prompt_ids, [6, 6], prompt_id="twin")
    training, validation = split([*samples, twin], 3)
    asked = {tuple(s.prompt_ids) for s in validation}
    assert not [s.id for s in training if tuple(s.prompt_ids) in asked] and len(training) in (4, 5)
    with pytest.raises(UserError, match="every prompt of the data is also a validation prompt"):
        split([Sample(name, [1], [2], prompt_id=name) for name in "ab"], 1)
