"""The eval stage: real loop and simulation agree, sampled acceptance is what it should be, liars are refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from sparsedraft import checkpoint
from sparsedraft.decoder import decoder_linears
from sparsedraft.errors import UserError
from sparsedraft.measure.evaluate import Options, evaluate_to
from sparsedraft.measure.macs import macs_of_model

GREEDY = Options(k=[1, 3, 8], max_new_tokens=16, limit=10, batch_size=4)


@pytest.fixture(scope="module")
def models(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[str, str]]]:
    """The tiny target, itself, and a copy with noise."""
    model = checkpoint.load(tiny_checkpoint)
    with torch.no_grad():
        for linear in decoder_linears(model).values():
            linear.weight += (
                0.2 * linear.weight.std() * torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(1))
            )
    folder = tmp_path_factory.mktemp("noisy") / "noisy"
    checkpoint.save(model, checkpoint.load_tokenizer(tiny_checkpoint), folder)
    return str(tiny_checkpoint), [("self", str(tiny_checkpoint)), ("noisy", str(folder))]


def test_simulation_equals_the_real_loop_in_every_figure(models, tmp_path: Path) -> None:
    target, drafters = models
    real = evaluate_to(tmp_path / "real", target, drafters, "demo:eval", GREEDY)
    simulated = evaluate_to(tmp_path / "sim", target, drafters, "demo:eval", dataclasses.replace(GREEDY, simulate=True))
    assert real["drafters"] == simulated["drafters"]
    assert (tmp_path / "real" / "rows.jsonl").read_bytes() == (tmp_path / "sim" / "rows.jsonl").read_bytes()
    itself, noisy = real["drafters"]
    assert itself["alpha"] == 1 and itself["c"] == 1 and itself["k"]["3"]["acceptance_rate"] == 1
    assert 0.05 < noisy["alpha"] < 0.95
    dense = macs_of_model(checkpoint.load(target))
    assert itself["macs_per_token"] == dense == real["dense_macs_per_token"]
    for drafter in real["drafters"]:
        for k, found in drafter["k"].items():
            assert (
                found["mal"] == pytest.approx(found["tokens"] / found["steps"])
                and sum(found["histogram"]) == found["steps"]
            )
            assert found["improvement_factor"] == pytest.approx(found["mal"] / (1 + int(k) * drafter["c"]))
        tokens = sum(c["sequences"] for c in drafter["by_category"].values())
        assert tokens == real["sequences"] and len(drafter["by_category"]) > 1


def test_worked_example_is_a_real_generation(models, tmp_path: Path) -> None:
    target, drafters = models
    evaluate_to(tmp_path / "out", target, drafters, "demo:eval", dataclasses.replace(GREEDY, simulate=True))
    example = json.loads((tmp_path / "out" / "example.json").read_text())
    assert example["drafter"] == "self" and example["k"] == 3
    assert all(0 <= s["accepted"] <= len(s["drafted"]) <= 3 for s in example["steps"])


def test_sampled_realised_acceptance_agrees_with_the_expected(models, tmp_path: Path) -> None:
    """At K = 1 a draft is accepted with probability Σ min(p, q): the two agree within four standard errors."""
    target, drafters = models
    options = Options(k=[1], temperature=1.0, max_new_tokens=24, limit=48, batch_size=16)
    named = [("target", drafters[1][1])]  # a drafter may be called that
    found = evaluate_to(tmp_path / "out", target, named, "demo:eval", options)["drafters"][0]
    rate, drafted = found["k"]["1"]["acceptance_rate"], found["k"]["1"]["steps"]
    assert 0.1 < found["alpha"] < 0.99
    assert abs(rate - found["alpha"]) < 4 * (found["alpha"] * (1 - found["alpha"]) / drafted) ** 0.5 + 0.05


def test_interrupted_evaluation_goes_on(models, tmp_path: Path, monkeypatch) -> None:
    from sparsedraft.measure import evaluate

    target, drafters = models
    whole = evaluate_to(tmp_path / "whole", target, drafters, "demo:eval", GREEDY)
    original, calls = evaluate._Evaluation._loop, []

    def dies(self, *args):
        calls.append(1)
        if len(calls) == 35:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(evaluate._Evaluation, "_loop", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate_to(tmp_path / "cut", target, drafters, "demo:eval", GREEDY)
    assert evaluate_to(tmp_path / "cut", target, drafters, "demo:eval", GREEDY) == whole
    assert len(calls) < 35 + whole["sequences"] * 2 * 3 - 30, "finished sequences are not decoded again"
    assert (tmp_path / "cut" / "rows.jsonl").read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()


def test_refusals(models, tmp_path: Path) -> None:
    target, drafters = models

    def refused(message: str, named: list[tuple[str, str]], options: Options = GREEDY) -> None:
        with pytest.raises(UserError, match=message):
            evaluate_to(None, target, named, "demo:eval", options)

    refused("--simulate is exact under greedy", drafters, dataclasses.replace(GREEDY, simulate=True, temperature=1.0))
    refused("two drafters are called 'self'", [drafters[0], drafters[0]])
    refused("temperature -1 is not possible", drafters, dataclasses.replace(GREEDY, temperature=-1))
    liar = shutil.copytree(drafters[1][1], tmp_path / "liar")
    name = next(iter(decoder_linears(checkpoint.load(liar))))
    claim = {"pattern": "2:4", "sparsity": 0.5, "linears": {name: 1}}
    (Path(liar) / "sparsity.json").write_text(json.dumps(claim))
    refused("lies", [("liar", str(liar))])
    other = shutil.copytree(drafters[1][1], tmp_path / "other")
    tokenizer = checkpoint.load_tokenizer(other)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(other)
    refused("different tokenizers", [("other", str(other))])
