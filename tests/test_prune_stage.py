"""Pruning a whole model: the pruned prefix, resume, layer-pruning, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsedraft import checkpoint
from sparsedraft.decoder import decoder_layers, decoder_linears, linears_of
from sparsedraft.errors import UserError
from sparsedraft.measure.macs import macs_of_checkpoint, macs_of_model
from sparsedraft.prune import layer_drop, sequential, stage
from sparsedraft.prune.allocation import spread
from sparsedraft.prune.sparsegpt import Hessian

SMALL = {"tokens": 1024, "sequence_length": 64}


def ids(rows: int = 6, length: int = 32) -> torch.Tensor:
    return torch.randint(3, 320, (rows, length), generator=torch.Generator().manual_seed(0))


def test_hessians_are_those_of_the_pruned_prefix(tiny_llama, monkeypatch) -> None:
    monkeypatch.setattr(sequential, "BATCH", 64)  # several batches
    model = tiny_llama()
    for index, layer, activations in sequential.walk(model, ids()):
        if index == 2:
            walked = {name: h.H for name, h in sequential.hessians(layer, index, activations).items()}
            break
        with torch.no_grad():
            layer.mlp.down_proj.weight[:, ::2] = 0  # as pruning would, before the walk goes on
    direct: dict[str, Hessian] = {}
    for name, linear in linears_of(decoder_layers(model)[2]).items():
        direct[name] = Hessian(linear.in_features)
        linear.register_forward_pre_hook(lambda _, args, name=name: direct[name].add(args[0]))
    with torch.no_grad():
        model(ids())
    assert walked.keys() == direct.keys()
    for name, hessian in direct.items():
        torch.testing.assert_close(walked[name], hessian.H, rtol=1e-4, atol=1e-4)


def test_linears_of_one_input_share_one_hessian(tiny_llama) -> None:
    _, layer, activations = next(iter(sequential.walk(tiny_llama(), ids())))
    found = sequential.hessians(layer, 0, activations)
    assert len({id(h) for h in found.values()}) == 4
    assert found["self_attn.q_proj"] is found["self_attn.v_proj"] and found["mlp.gate_proj"] is found["mlp.up_proj"]


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_checkpoint_has_its_zeros_and_works_without_us(pattern: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = stage.prune(str(tiny_checkpoint), out, "demo:train", pattern=pattern, **SMALL)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert result["sparsity"] == 0.5 and result["macs_per_token"] == macs_of_model(model) == macs_of_checkpoint(out)
    for linear in decoder_linears(model).values():
        assert int((linear.weight == 0).sum()) == linear.weight.numel() // 2
    dense = checkpoint.load(tiny_checkpoint)
    assert torch.equal(model.get_input_embeddings().weight, dense.get_input_embeddings().weight)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.generate(ids(1), max_new_tokens=4, do_sample=False).shape == (1, 36)
    assert json.loads((out / "provenance.json").read_text())["command"] == "prune"


def test_killed_pruning_goes_on_to_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    stage.prune(str(tiny_checkpoint), tmp_path / "whole", "demo:train", **SMALL)
    calls = []
    original = stage._prune_layer

    def dies(layer, index, *args):
        calls.append(index)
        if index == 2 and calls.count(2) == 1:
            raise KeyboardInterrupt
        return original(layer, index, *args)

    monkeypatch.setattr(stage, "_prune_layer", dies)
    with pytest.raises(KeyboardInterrupt):
        stage.prune(str(tiny_checkpoint), tmp_path / "cut", "demo:train", **SMALL)
    stage.prune(str(tiny_checkpoint), tmp_path / "cut", "demo:train", **SMALL)
    assert calls == [0, 1, 2, 2, 3], "finished layers are not done again"
    for name in ("model.safetensors", "result.json", "sparsity.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_owl_varies_around_the_wanted_mean(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = stage.prune(str(tiny_checkpoint), tmp_path / "owl", "demo:train", allocation="owl", sparsity=0.6, **SMALL)
    assert result["sparsity"] == pytest.approx(0.6, abs=1e-3) and len(set(result["layer_sparsity"])) > 1
    shares = spread(torch.tensor([0.1, 0.2, 0.6], dtype=torch.float64), 0.5)
    assert shares == sorted(shares, reverse=True) and sum(shares) / 3 == pytest.approx(0.5)


def test_refusals(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def refused(message: str, **options: object) -> None:
        with pytest.raises(UserError, match=message):
            stage.prune(str(tiny_checkpoint), tmp_path / "no", "demo:train", **{**SMALL, **options})

    refused("2:4 has sparsity 0.5, not 0.75", pattern="2:4", sparsity=0.75)
    refused("--method obd", method="obd")
    refused("owl varies", allocation="owl", pattern="2:4")
    refused(r"q_proj has 64 inputs, which 2:5 does not divide", pattern="2:5")
    with pytest.raises(UserError, match="no such file"):
        stage.prune(str(tiny_checkpoint), tmp_path / "no2", str(tmp_path / "none.jsonl"), **SMALL)


@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "magnitude"])
@pytest.mark.parametrize(
    ("where", "what"), [("mlp.gate_proj", "weights hold NaN"), ("input_layernorm", "activations hold NaN")]
)
def test_nan_names_its_layer_and_writes_nothing(method, where, what, tiny_llama, tokenizer, tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        decoder_layers(model)[1].get_submodule(where).weight.view(-1)[3] = float("nan")
    checkpoint.save(model, tokenizer, tmp_path / "nan")
    with pytest.raises(UserError, match=f"layer 1, .*{what}"):
        stage.prune(str(tmp_path / "nan"), tmp_path / "out", "demo:train", method=method, **SMALL)
    assert not (tmp_path / "out").exists()


# ---- layer-pruning


def redundant(model, first: int, n: int):
    """Make the layers first … first+n-1 identities."""
    with torch.no_grad():
        for layer in decoder_layers(model)[first : first + n]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def test_the_known_redundant_block_is_found_and_dropping_it_changes_nothing(
    tiny_llama, tokenizer, tmp_path: Path
) -> None:
    model = redundant(tiny_llama(layers=7), 3, 2)
    states = layer_drop.last_token_states(model, ids())
    distances = layer_drop.angular_distances(states, 2)
    assert len(distances) == 6 and int(distances.argmin()) == 3 and float(distances[3]) == pytest.approx(0, abs=1e-3)
    with torch.no_grad():
        expected = model(ids()).logits
        layer_drop.drop(model, 3, 2)
        torch.testing.assert_close(model(ids()).logits, expected)
    checkpoint.save(model, tokenizer, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.num_hidden_layers == 5
    assert [layer.self_attn.layer_idx for layer in decoder_layers(again)] == list(range(5))
    assert [layer.self_attn.layer_idx for layer in decoder_layers(model)] == list(range(5))


def test_cache_of_a_cut_model_is_right(tiny_llama) -> None:
    model = tiny_llama(layers=6)
    layer_drop.drop(model, 1, 3)
    with torch.no_grad():
        expected = model(ids(1, 12)).logits[0, -1]
        first = model(ids(1, 12)[:, :7], use_cache=True)
        second = model(ids(1, 12)[:, 7:], cache=first.cache, use_cache=True)
    torch.testing.assert_close(second.logits[0, -1], expected, rtol=1e-4, atol=1e-4)
    assert len(first.cache.layers) == 3


def test_angular_distance_by_hand() -> None:
    states = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]])  # a quarter turn each layer
    assert layer_drop.angular_distances(states, 1).tolist() == pytest.approx([0.5, 0.5])
    assert layer_drop.angular_distances(states, 2).tolist() == pytest.approx([1.0])


def test_macs_are_matched_to_the_nearest_layer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    stage.prune(str(tiny_checkpoint), tmp_path / "sparse", "demo:train", method="magnitude", sparsity=0.6, **SMALL)
    result = stage.drop_layers(
        str(tiny_checkpoint), tmp_path / "cut", "demo:train", match_macs=str(tmp_path / "sparse"), **SMALL
    )
    each = (result["macs_before"] - result["macs_per_token"]) / result["dropped"]
    assert abs(result["macs_per_token"] - result["macs_wanted"]) <= each / 2
    assert result["macs_per_token"] == macs_of_checkpoint(tmp_path / "cut")
    assert result["angular_distance"] == min(result["angular_distances"])


def test_a_sparse_drafter_keeps_its_mask_when_it_loses_layers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    stage.prune(str(tiny_checkpoint), tmp_path / "sparse", "demo:train", pattern="2:4", **SMALL)
    stage.drop_layers(str(tmp_path / "sparse"), tmp_path / "cut", "demo:train", layers=1, **SMALL)
    claim = checkpoint.check_sparsity(checkpoint.load(tmp_path / "cut"), tmp_path / "cut")
    assert claim and claim["pattern"] == "2:4" and len(claim["linears"]) == 21 and claim["sparsity"] == 0.5


def test_drop_layers_refusals(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for options in ({}, {"layers": 1, "match_macs": str(tiny_checkpoint)}):
        with pytest.raises(UserError, match="either --layers or --match-macs"):
            stage.drop_layers(str(tiny_checkpoint), tmp_path / "a", "demo:train", **SMALL, **options)
    with pytest.raises(UserError, match="--layers 4 of 4"):
        stage.drop_layers(str(tiny_checkpoint), tmp_path / "b", "demo:train", layers=4, **SMALL)


def test_a_model_without_plain_linears_says_which_module(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, max_position_embeddings=128,
    )  # fmt: skip
    shutil.copytree(tiny_checkpoint, tmp_path / "moe")
    (tmp_path / "moe" / "model.safetensors").unlink()
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    with pytest.raises(UserError, match="experts"):
        stage.prune(str(tmp_path / "moe"), tmp_path / "out", "demo:train", **SMALL)
