"""Layer-pruning: the known redundant block, equal MACs, caches and configs of the cut model, resume, refusals."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, MixtralForCausalLM, SmolLM3Config

from sparsedraft.base.errors import UserError
from sparsedraft.layerwise import sequential
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.models import census, checkpoint, claims
from sparsedraft.models.config.older_names import with_older_names
from sparsedraft.models.decoder import decoder_layers
from sparsedraft.stages.prune import layer_drop
from stages import drop_layers, inspect, prune

SMALL = {"tokens": 1024, "sequence_length": 64}


def ids(rows: int = 6, length: int = 32) -> torch.Tensor:
    return torch.randint(3, 320, (rows, length), generator=torch.Generator().manual_seed(0))


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
    checkpoint.save(model, tokenizer, tmp_path / "seven")
    result = drop_layers(str(tmp_path / "seven"), tmp_path / "five", "demo:train", layers=2, **SMALL)
    assert result["first_dropped"] == 3 and len(result["angular_distances"]) == 6
    assert result["angular_distance"] == pytest.approx(0, abs=1e-3)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "five")
    assert again.config.num_hidden_layers == 5 == len(decoder_layers(again))
    assert [layer.self_attn.layer_idx for layer in decoder_layers(again)] == list(range(5))
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight
    with torch.no_grad():
        torch.testing.assert_close(again(ids()).logits, model(ids()).logits)
        first = again(ids(1, 12)[:, :7], use_cache=True)
        second = again(ids(1, 12)[:, 7:], cache=first.cache, use_cache=True)
        expected = again(ids(1, 12)).logits[0, -1]
    torch.testing.assert_close(second.logits[0, -1], expected, rtol=1e-4, atol=1e-4)
    assert len(first.cache.layers) == 5


def test_states_are_the_models_own_hidden_states(tiny_llama, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sequential, "BATCH", 64)
    model = tiny_llama()
    model.save_pretrained(tmp_path / "saved")
    states = layer_drop.last_token_states(Streamed(tmp_path / "saved"), ids(), tmp_path)
    with torch.no_grad():
        expected = model(ids(), output_hidden_states=True).hidden_states
    for mine, theirs in zip(states[:-1], expected[:-1], strict=True):  # the last of theirs is normalised
        torch.testing.assert_close(mine, theirs[:, -1], rtol=1e-4, atol=1e-4)


def test_angular_distance_by_hand() -> None:
    states = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]])  # a quarter turn each layer
    assert layer_drop.angular_distances(states, 1).tolist() == pytest.approx([0.5, 0.5])
    assert layer_drop.angular_distances(states, 2).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.6, 0.75])
def test_macs_are_matched_to_the_nearest_layer(sparsity: float, tiny_checkpoint: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    prune(str(tiny_checkpoint), sparse, "demo:train", method="magnitude", sparsity=sparsity, **SMALL)
    result = drop_layers(str(tiny_checkpoint), tmp_path / "cut", "demo:train", match_macs=str(sparse), **SMALL)
    assert result["macs_wanted"] == census.macs(sparse)
    each = (result["macs_before"] - result["macs_per_token"]) / result["dropped"]
    assert abs(result["macs_per_token"] - result["macs_wanted"]) <= each / 2
    assert result["macs_per_token"] == census.macs(tmp_path / "cut")
    assert result["angular_distance"] == min(result["angular_distances"])


def test_macs_of_layers_that_differ_are_counted_one_by_one() -> None:
    states = torch.eye(4)[[0, 1, 1, 2, 3]].unsqueeze(1)  # dropping layer 1 alone changes nothing
    macs = [100, 10, 100, 100]
    assert layer_drop.layers_to_match(states, macs, 50, 360) == 0
    assert layer_drop.layers_to_match(states, macs, 50, 350) == 1
    assert layer_drop.layers_to_match(states, macs, 50, 250) == 2  # layers 0 and 1, the first of two equal blocks
    assert layer_drop.layers_to_match(states, macs, 50, 0) == 3


def test_a_sparse_drafter_keeps_its_mask_and_counts_its_zeros(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name, options in (("plain", {"pattern": "2:4"}), ("mixed", {"pattern": "4:8", "allocation": "owl"})):
        prune(str(tiny_checkpoint), tmp_path / name, "demo:train", **options, **SMALL)
        cut = tmp_path / f"{name}-cut"
        drop_layers(str(tmp_path / name), cut, "demo:train", layers=1, **SMALL)
        claim = claims.check_claims(checkpoint.load(cut), cut)
        assert claim and len(claim["linears"]) == 21 and claim["sparsity"] == pytest.approx(0.5, abs=0.1)
        assert inspect(str(cut))["claim_holds"]
    options = {"match_macs": str(tmp_path / "plain-cut"), **SMALL}  # one of four sparse layers, not of four dense ones
    assert drop_layers(str(tmp_path / "plain"), tmp_path / "matched", "demo:train", **options)["dropped"] == 1


def test_lists_by_layer_in_the_config_are_cut() -> None:
    config = SmolLM3Config(num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0], layer_types=["full_attention"] * 4)
    layer_drop.cut_config(config, [0, 2])
    assert config.no_rope_layers == [1, 1] and len(config.layer_types) == 2 == config.num_hidden_layers
    config = LlamaConfig(num_hidden_layers=2, eos_token_id=[5, 6])
    layer_drop.cut_config(config, [1])
    assert config.eos_token_id == [5, 6], "a list that happens to be as long is left alone"


def test_killed_walk_goes_on_to_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    drop_layers(str(tiny_checkpoint), tmp_path / "whole", "demo:train", layers=2, **SMALL)
    original, calls = sequential.Activations.advance, []

    def dies(self, layer, index):
        calls.append(index)
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return original(self, layer, index)

    monkeypatch.setattr(sequential.Activations, "advance", dies)
    with pytest.raises(KeyboardInterrupt):
        drop_layers(str(tiny_checkpoint), tmp_path / "cut", "demo:train", layers=2, **SMALL)
    drop_layers(str(tiny_checkpoint), tmp_path / "cut", "demo:train", layers=2, **SMALL)
    assert calls == [0, 1, 1, 2, 3]
    for name in ("model.safetensors", "result.json", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def mixtral(folder: Path) -> Path:
    config = MixtralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, max_position_embeddings=128,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def test_refusals(tiny_checkpoint: Path, tiny_llama, tokenizer, tmp_path: Path) -> None:
    def refused(message: str, model: Path = tiny_checkpoint, **options: object) -> None:
        with pytest.raises(UserError, match=message):
            drop_layers(str(model), tmp_path / "no", "demo:train", **SMALL, **options)
        assert not (tmp_path / "no").exists()

    refused("either --layers or --match-macs")
    refused("either --layers or --match-macs", layers=1, match_macs=str(tiny_checkpoint))
    refused("--layers 4 of 4", layers=4)
    refused("--layers 0 is not possible: give 1 to 10000", layers=0)
    refused("nothing to drop", match_macs=str(tiny_checkpoint))
    model = tiny_llama()
    with torch.no_grad():
        decoder_layers(model)[2].mlp.up_proj.weight[0, 0] = float("nan")
    checkpoint.save(model, tokenizer, tmp_path / "nan")
    refused("model.layers.2.mlp.up_proj.weight .* holds NaN", tmp_path / "nan", layers=1)
    moe = mixtral(tmp_path / "moe")
    matched = drop_layers(str(tiny_checkpoint), tmp_path / "like", "demo:train", match_macs=str(moe), **SMALL)
    assert matched["macs_wanted"] == 2 * (3 * 32 * 32 + 2 * 32 + 2 * 3 * 32 * 32) + 320 * 32, "2 of 2 experts"


def test_config_of_the_cut_model_says_its_layers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    drop_layers(str(tiny_checkpoint), tmp_path / "cut", "demo:train", layers=1, **SMALL)
    before, after = (json.loads((f / "config.json").read_text()) for f in (tiny_checkpoint, tmp_path / "cut"))
    assert after["num_hidden_layers"] == before["num_hidden_layers"] - 1
    before, after = with_older_names(before), with_older_names(after)
    assert {k: v for k, v in after.items() if "layer" not in k} == {k: v for k, v in before.items() if "layer" not in k}
