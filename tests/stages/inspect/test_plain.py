"""Plain checkpoints are inspected without transformers, and the result is the one that transformers' model gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import packed_folders
from families import FAMILIES, GROUPED
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import dumps
from sparsedraft.models.config.plain import ARCHITECTURES
from sparsedraft.models.shards import Shards, write
from sparsedraft.stages.inspect.counted import inspect_any
from sparsedraft.stages.inspect.plain import inspect_plain
from stages import pack

CONFIGS = {
    **FAMILIES,
    "llama with biases": hf.LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "qwen3, tied": hf.Qwen3Config(**GROUPED, head_dim=16, tie_word_embeddings=True),
    "mistral with no window": hf.MistralConfig(**GROUPED, sliding_window=None),
}
PLAIN = [name for name, config in CONFIGS.items() if config.model_type in ARCHITECTURES]
SWEPT = ("llama", "mistral with a sliding window", "qwen2", "qwen3")
ODD = (None, "x", "float32", -1, 0, 1, 7, 320, 10**12, 0.5, 1.5, -1.0, True, False, [], [1], ["x"], {}, {"x": 1})


def model_of(name: str) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name])


def same(folder: Path) -> dict[str, Any] | None:
    """The result for a plain checkpoint, equal to that of any other; None, whatever is said elsewhere, for no such."""
    result = inspect_plain(folder)
    assert result is None or dumps(result) == dumps(inspect_any(folder))
    return result


def refused(folder: Path) -> bool:
    try:
        inspect_any(folder)
    except UserError:
        return True
    return False


def change_config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A fresh pruned llama to change."""
    return packed_folders.save(model_of("llama"), tmp_path / "tiny", "2:4", torch.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_families(name: str, tmp_path: Path) -> None:
    for pattern, dtype in (
        (None, torch.float32),
        ("2:4", torch.bfloat16),
        ("3:8", torch.float16),
        ("4:16", torch.bfloat16),
        ("unstructured", torch.float16),
        ("2:4", torch.float64),
    ):
        folder = packed_folders.save(model_of(name), tmp_path / f"{pattern}-{dtype}".replace(":", "of"), pattern, dtype)
        assert (same(folder) is not None) == (name in PLAIN)


def test_shards_and_errors_of_pruning(tiny: Path) -> None:
    shards = Shards(tiny)
    (tiny / "sharded").mkdir()
    write(tiny / "sharded", {name: (shards, name) for name in shards.files}, limit=20_000)
    for file in ("config.json", "sparsity.json"):
        (tiny / "sharded" / file).write_bytes((tiny / file).read_bytes())
    errors = {"1.mlp.up_proj": 0.25, "model.layers.2.mlp.up_proj": 0.5}
    (tiny / "sharded" / "result.json").write_text(json.dumps({"relative_errors": errors}))
    result = same(tiny / "sharded")
    assert result is not None and len([*(tiny / "sharded").glob("*.safetensors")]) > 2
    assert {row["error"] for row in result["linears"]} == {None, 0.25, 0.5} and result["claim_holds"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_that_are_zero(tiny: Path, dtype: torch.dtype) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})
        smallest = torch.finfo(dtype).smallest_normal
        odd = torch.tensor([-0.0, 0.0, smallest, -smallest / 2, float("nan"), float("inf"), float("-inf"), 1.0])
        tensors["model.layers.1.mlp.up_proj.weight"][0, :8] = odd.to(dtype)
        tensors["model.norm.weight"][:8] = odd.to(dtype)

    change_tensors(tiny, change)
    assert same(tiny) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEPT)
def test_every_field_with_odd_values(name: str, tmp_path: Path) -> None:
    """Where a config says something that transformers takes in another way, or refuses, it is not plain."""
    folder = packed_folders.save(model_of(name), tmp_path / "model", None)
    before = (folder / "config.json").read_text()
    more = ("rope_scaling", "rope_theta", "auto_map", "is_encoder_decoder", "num_experts", "quantization_config")
    more += ("text_config", "head_dim", "layer_types", "sliding_window", "mlp_bias", "pretraining_tp", "torch_dtype")
    for number, field in enumerate(sorted({*more, *json.loads(before)})):
        # a third of the values, other ones for each family: together the four families meet all
        for value in ODD[(number + SWEPT.index(name)) % 3 :: 3]:
            (folder / "config.json").write_text(before)
            change_config(folder, **{field: value})
            same(folder)
        (folder / "config.json").write_text(json.dumps({k: v for k, v in json.loads(before).items() if k != field}))
        same(folder)


def test_what_is_not_plain_is_left_to_transformers(tiny: Path) -> None:
    up = "model.layers.1.mlp.up_proj.weight"
    before = {file.name: file.read_bytes() for file in tiny.iterdir() if file.is_file()}

    def changed(change: Callable[[dict[str, Tensor]], object], **fields: object) -> bool:
        for name, text in before.items():
            (tiny / name).write_bytes(text)
        change_tensors(tiny, change)
        change_config(tiny, **fields)
        return inspect_plain(tiny) is None

    assert not changed(lambda tensors: None), "it is plain as it was"
    assert changed(lambda tensors: tensors.pop(up))
    assert changed(lambda tensors: tensors.update({up: tensors[up].T.contiguous()}))
    assert changed(lambda tensors: tensors.update({up: tensors[up].to(torch.float8_e4m3fn)}))
    assert changed(lambda tensors: tensors.update({up: tensors[up].to(torch.int8)}))
    assert changed(lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight_scale": torch.ones(1)}))
    assert changed(lambda tensors: tensors.update({"vision.weight": torch.ones(2, 2)}))
    assert changed(lambda tensors: tensors.update({up.removeprefix("model."): tensors.pop(up)}))
    assert changed(lambda tensors: None, tie_word_embeddings=True), "its head may be the embedding, or not"
    assert not changed(lambda tensors: tensors.pop("lm_head.weight"), tie_word_embeddings=True) and same(tiny)
    assert changed(lambda tensors: None, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})


def test_claims_and_damage(tiny: Path) -> None:
    claim = json.loads((tiny / "sparsity.json").read_text())
    name, zeros = next(iter(claim["linears"].items()))
    for lie in (
        {**claim, "pattern": "1:4"},
        {**claim, "pattern": "5:7"},
        {**claim, "patterns": {name: "dense"}},
        {**claim, "linears": {**claim["linears"], name: zeros + 1}},
        {**claim, "linears": {**claim["linears"], "model.layers.9.mlp": 0}},
        {**claim, "linears": {name: zeros}},
        {**claim, "linears": {}},
    ):
        (tiny / "sparsity.json").write_text(json.dumps(lie))
        assert same(tiny) is not None
    (tiny / "sparsity.json").write_text("{")
    assert inspect_plain(tiny) is None and refused(tiny)
    (tiny / "sparsity.json").unlink()
    whole = (tiny / "model.safetensors").read_bytes()
    for damaged in (b"", whole[:7], whole[:100], whole[:-1], whole + b"x", b"\xff" * 8 + whole[8:]):
        (tiny / "model.safetensors").write_bytes(damaged)
        assert inspect_plain(tiny) is None and refused(tiny)


def test_a_packed_folder_is_not_plain(tmp_path: Path) -> None:
    source = packed_folders.save(packed_folders.build("llama", True), tmp_path / "half", "2:4")
    pack(str(source), tmp_path / "packed")
    assert inspect_plain(source) is not None and inspect_plain(tmp_path / "packed") is None
