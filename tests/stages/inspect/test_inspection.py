"""`inspect`: what it says of dense, pruned, cut, foreign and damaged checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertModel, MixtralConfig, MixtralForCausalLM

import packed_folders
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint, claims, shards
from sparsedraft.models.census import holds, macs
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.models.macs import macs_of_model, nonzero_parameters
from sparsedraft.native.model import native_model
from stages import inspect, pack, prune
from tiny import build_tokenizer

SMALL = {"tokens": 512, "sequence_length": 64}
OTHERS = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_dense_and_pruned_agree_with_the_loaded_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = prune(str(tiny_checkpoint), tmp_path / "half", "demo:train", pattern="2:8", **SMALL)
    for folder, patterns in ((tiny_checkpoint, {"dense"}), (tmp_path / "half", {"2:8"})):
        model = AutoModelForCausalLM.from_pretrained(folder)
        found = inspect(str(folder))
        assert found["macs_per_token"] == macs_of_model(model) == macs(folder)
        assert (found["nonzero_parameters"], found["parameters"]) == nonzero_parameters(model)
        assert found["macs_dense"] == macs_of_model(model, 0.0) and found["layers"] == 4
        assert found["bytes"] == 4 * found["parameters"] and found["dtypes"] == ["F32"]
        assert {row["pattern"] for row in found["linears"]} == patterns
        linears = decoder_linears(model)
        assert [row["name"] for row in found["linears"]] == list(linears)
        assert [row["shape"] for row in found["linears"]] == [tuple(linear.weight.shape) for linear in linears.values()]
    errors = {row["name"].removeprefix("model.layers."): row["error"] for row in found["linears"]}
    assert errors == result["relative_errors"] and found["claims"] == "2:8" and found["claim_holds"]


def test_the_tightest_pattern_that_holds() -> None:
    def mask(text: str) -> torch.Tensor:
        return torch.tensor([[float(c == "x") for c in text]])

    assert holds(mask("xxxxxxxx")) == "dense" and holds(mask("x.x.x..x")) == "2:4"
    assert holds(mask("xxxx....")) == "4:8" and holds(mask("x.......")) == "1:8"
    assert holds(mask("xxxxxxxx........")) == "8:16" and holds(mask("xxx.x.x.xxx")) == "unstructured"
    assert holds(mask("xxxxxxx.xxxxxxxxxxxxxxxx")) == "unstructured", "one zero is no 8:8"


def test_unplain_models_are_shown(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, max_position_embeddings=128,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    BertModel(
        BertConfig(hidden_size=32, intermediate_size=32, num_attention_heads=4, num_hidden_layers=2)
    ).save_pretrained(tmp_path / "bert")
    for name in ("moe", "bert"):
        found = inspect(str(tmp_path / name))
        assert (found["macs_per_token"] is None) == (name == "bert"), "of experts the active ones count"
        assert len(found["linears"]) >= 10 and found["parameters"] > 0


def test_eight_bit_floats_are_counted_and_no_tensors_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "fp8")
    state = load_file(tmp_path / "fp8" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    state[name][:, ::2] = 0
    save_file({**state, name: state[name].to(torch.float8_e4m3fn)}, tmp_path / "fp8" / "model.safetensors")
    found = {row["name"]: row for row in inspect(str(tmp_path / "fp8"))["linears"]}
    assert found[name.removesuffix(".weight")]["sparsity"] >= 0.5
    save_file({}, tmp_path / "fp8" / "model.safetensors")
    with pytest.raises(UserError, match="holds no tensors"):
        inspect(str(tmp_path / "fp8"))


def test_the_files_read_are_those_that_transformers_reads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    state = load_file(tmp_path / "model" / "model.safetensors")
    save_file({name: tensor + 7 for name, tensor in state.items()}, tmp_path / "model" / "old.safetensors")
    (tmp_path / "model" / shards.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(state, "old.safetensors")}))
    read = shards.Shards(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(read.tensor(name), plain[name]) for name in read.files)
    (tmp_path / "model" / shards.INDEX).unlink()
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "new.safetensors")
    with pytest.raises(UserError, match=r"twice, in new\.safetensors and old\.safetensors"):
        shards.Shards(tmp_path / "model")


def test_a_lie_and_damage_are_seen(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prune(str(tiny_checkpoint), tmp_path / "half", "demo:train", **SMALL)
    claim = json.loads((tmp_path / "half" / "sparsity.json").read_text())
    (tmp_path / "half" / "sparsity.json").write_text(json.dumps({**claim, "pattern": "2:4"}))
    assert inspect(str(tmp_path / "half"))["claim_holds"] is False
    for text in ("{", "[]", "[" * 200_000, '{"pattern": "2:4"}', '{"pattern": "5", "linears": {}}'):
        (tmp_path / "half" / "sparsity.json").write_text(text)
        with pytest.raises(UserError, match=r"sparsity\.json cannot be read"):
            claims.claim_of(tmp_path / "half")
    with pytest.raises(UserError, match="no such folder"):
        inspect(str(tmp_path / "none"))


def test_shards_are_bounded_indexed_and_complete(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = shards.Shards(tiny_checkpoint)
    shards.write(tmp_path, {name: (source, name) for name in source.files}, limit=100_000)
    shards.copy_side_files(tiny_checkpoint, tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    largest = max(source.bytes(name) for name in source.files)
    assert len(files) > 3 and all(f.stat().st_size <= max(100_000, largest) + 10_000 for f in files)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(tiny_checkpoint).state_dict().items():
        assert torch.equal(plain[name], tensor)
    index = json.loads((tmp_path / shards.INDEX).read_text())
    for broken in ("{", "[]", "[" * 200_000, '{"weight_map": 3}'):
        (tmp_path / shards.INDEX).write_text(broken)
        with pytest.raises(UserError, match=r"index\.json cannot be read"):
            checkpoint.find(tmp_path)
    outside = {**index, "weight_map": {"a": f"../../{tiny_checkpoint.name}/model.safetensors"}}
    (tmp_path / shards.INDEX).write_text(json.dumps(outside))
    with pytest.raises(UserError, match=r"lacks its shard model\.safetensors"):
        checkpoint.find(tmp_path)
    shutil.rmtree(tmp_path)


def test_how_the_native_engine_runs_each_linear(tmp_path: Path) -> None:
    """Of a pruned checkpoint and of its packed folder, the same; what is not pruned, or not 16 bits, runs dense."""
    for pattern, weights, expected in (
        ("2:4", "bf16", "2:4"),
        ("3:8", "bf16", "3:8"),
        ("unstructured", "int8", "bitmask"),
    ):
        name = f"{pattern}-{weights}".replace(":", "of")
        source = packed_folders.save(packed_folders.build("llama", True), tmp_path / name, pattern, torch.bfloat16)
        assert {row["runs"] for row in inspect(str(source))["linears"]} == {f"{expected} bf16"}
        pack(str(source), tmp_path / f"{name}-packed", weights=weights)
        plain, found = inspect(str(source)), inspect(str(tmp_path / f"{name}-packed"))
        kind = "i8" if weights == "int8" else weights
        assert {row["runs"].split()[1] for row in found["linears"]} == {kind}
        same = ("macs_per_token", "macs_dense", "parameters", "nonzero_parameters", "layers", "sparsity")
        assert weights == "int8" or [found[key] for key in same] == [plain[key] for key in same]
        assert sorted(row["name"] for row in found["linears"]) == sorted(row["name"] for row in plain["linears"])
        assert 0 < found["bytes"] < plain["bytes"]
    dense = packed_folders.save(packed_folders.build("qwen2", False), tmp_path / "dense", None, torch.float32)
    assert {row["runs"] for row in inspect(str(dense))["linears"]} == {"dense f32"}
    assert {row["runs"] for row in inspect(str(source))["linears"]} == {"bitmask bf16"}


def test_the_engine_says_the_same(tmp_path: Path) -> None:
    if not packed_folders.BUILT:
        pytest.skip("not built")
    source = packed_folders.save(packed_folders.build("llama", False), tmp_path / "half", "2:4", torch.bfloat16)
    pack(str(source), tmp_path / "packed", weights="int8")
    for folder in (source, tmp_path / "packed"):
        runs = native_model(folder).layouts
        assert {row["name"]: row["runs"] for row in inspect(str(folder))["linears"]} == {
            name: how for name, how in runs.items() if name != "lm_head"
        }


@pytest.mark.parametrize(
    ("pattern", "head", "group", "bytes_per_weight"),
    [
        (None, None, 32, 1 / 2 + 2 / 32),
        ("2:4", "int4", 64, 1 / 4 + 1 / 8 + 2 / 64),
        ("4:8", "bf16", 64, 1 / 4 + 1 / 8 + 2 / 64),
        ("2:8", "int8", 128, 1 / 8 + 1 / 8 + 2 / 128),
    ],
)
def test_int4_is_shown_with_its_groups_and_bytes(
    tmp_path: Path, pattern: str | None, head: str | None, group: int, bytes_per_weight: float
) -> None:
    """By the formulas of the format, of matrices whose inputs fill whole groups and bytes."""
    model = packed_folders.build("llama", False)
    source = packed_folders.save(model, tmp_path / "source", pattern, torch.bfloat16)
    pack(str(source), tmp_path / "packed", weights="int4", head_weights=head)
    found = inspect(str(tmp_path / "packed"))
    rows = found["linears"]
    assert {(row["values"], row["group"]) for row in rows} == {("int4", group)}
    whole = [row for row in rows if row["shape"][1] % group == 0]
    assert whole and {row["bytes_per_weight"] for row in whole} == {bytes_per_weight}
    assert found["head_weights"] == found["embedding_weights"] == (head or "int8")
    assert found["activations"] == (8 if head in (None, "int8") else None)
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    assert found["bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    of_linears = [tensor.nbytes for name, tensor in tensors.items() if "_proj." in name]
    assert found["bytes_per_weight"] == sum(of_linears) / sum(row["shape"][0] * row["shape"][1] for row in rows)


@pytest.mark.parametrize(
    "config",
    [
        hf.GPTNeoXConfig(intermediate_size=64, tie_word_embeddings=False, **OTHERS),
        hf.GPTNeoXConfig(intermediate_size=64, tie_word_embeddings=True, **OTHERS),
        hf.OPTConfig(ffn_dim=64, word_embed_proj_dim=64, **OTHERS),
    ],
    ids=["embed_out", "embed_in", "projected"],
)
def test_whatever_lies_outside_of_packed_layers_is_counted(config: hf.PretrainedConfig, tmp_path: Path) -> None:
    """Heads of other names, which are not packed, and what projects in or out."""
    model = AutoModelForCausalLM.from_config(config)
    checkpoint.save(model, build_tokenizer(), tmp_path / "source")
    result = pack(str(tmp_path / "source"), tmp_path / "packed", weights="int4")
    found = inspect(str(tmp_path / "packed"))
    assert found["macs_dense"] == macs_of_model(model, 0.0) == inspect(str(tmp_path / "source"))["macs_dense"]
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "packed" / "model.safetensors").values())
    assert found["bytes"] == result["bytes"] == stored
    assert sum(row["bytes"] for row in found["linears"]) == result["linear_bytes"]


def test_a_rounded_checkpoint_is_shown_as_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prune(str(tiny_checkpoint), tmp_path / "rounded", "demo:train", pattern="2:4", quantize="int4", **SMALL)
    found = inspect(str(tmp_path / "rounded"))
    assert {(row["values"], row["group"]) for row in found["linears"]} == {("int4", 64)}
    assert found["claim_holds"] and found["head_weights"] is None and found["dtypes"] == ["F32"]
    assert all(4 < row["bytes_per_weight"] < 4.5 for row in found["linears"]), "floats, and the scales beside them"
    scales = load_file(tmp_path / "rounded" / "quantization.safetensors")
    name = found["linears"][0]["name"]
    save_file({**scales, f"{name}.scale": scales[f"{name}.scale"] * 3}, tmp_path / "rounded/quantization.safetensors")
    assert inspect(str(tmp_path / "rounded"))["claim_holds"] is False
