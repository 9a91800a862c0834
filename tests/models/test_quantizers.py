"""Quantised checkpoints: one sentence in every command, run where transformers can, and never a folder from them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.models.macs import macs_of_config
from sparsedraft.native import extension as native
from sparsedraft.stages.finetune.loop import Settings
from sparsedraft.stages.inspect.stage import table as inspection_table
from sparsedraft.writers.loaded import LoadedModel
from stages import distill, drop_layers, evaluate_to, finetune, inspect, pack, prune

SMALL = {"tokens": 512, "sequence_length": 64}
State = dict[str, torch.Tensor]
IDS = torch.tensor([[5, 250, 17, 301, 99, 4, 4, 120]])


def renamed(ending: str) -> Callable[[State], State]:
    return lambda state: {n.replace("_proj.weight", f"_proj.{ending}"): tensor for n, tensor in state.items()}


def fp8(state: State) -> State:
    """Blocks of 128 x 128 in 8 bits with a scale each, as DeepSeek stores them."""
    found = {}
    for name, weight in state.items():
        if not name.endswith("_proj.weight"):
            found[name] = weight
            continue
        rows, columns = (size // 128 for size in weight.shape)
        blocks = weight.view(rows, 128, columns, 128)
        scales = blocks.abs().amax((1, 3)) / 448
        found[name] = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn).view(weight.shape)
        found[f"{name}_scale_inv"] = scales
    return found


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
SPARSE24 = {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}
FORMATS: dict[str, tuple[str, dict, Callable[[State], State]]] = {  # what is said, config, tensors
    "gptq": ("gptq", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, renamed("qweight")),
    "gptq without a config": ("GPTQ or AWQ, by its tensor ", {}, renamed("qweight")),
    "awq": ("awq", {"quantization_config": {"quant_method": "awq", "bits": 4}}, renamed("qweight")),
    "bitsandbytes": (
        "bitsandbytes, 4-bit", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, dict
    ),
    "compressed-tensors": (
        "compressed-tensors, pack-quantized",
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
        renamed("weight_packed"),
    ),
    "sparse-24-bitmask": (
        "compressed-tensors, sparse-24-bitmask", {"compression_config": SPARSE24}, renamed("bitmask")
    ),
    "int8 without a config": (
        "I8, by its tensor ", {}, lambda s: {n: t.to(torch.int8) if "_proj" in n else t for n, t in s.items()}
    ),
    "a kind of the future": ("tomorrow", {"quantization_config": {"quant_method": "tomorrow"}}, dict),
}  # fmt: skip


@pytest.fixture(scope="module")
def dense(tiny_llama, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_llama(layers=2, hidden_size=128, intermediate_size=256, num_key_value_heads=4)
    folder = tmp_path_factory.mktemp("quantised") / "dense"
    checkpoint.save(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def data(dense: Path) -> Path:
    distill(str(dense), "demo:train", dense.parent / "data", max_new_tokens=8, limit=20, batch_size=8)
    return dense.parent / "data"


def quantised(dense: Path, folder: Path, config: dict, change: Callable[[State], State]) -> Path:
    shutil.copytree(dense, folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **config}))
    state = change(load_file(folder / "model.safetensors"))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("format_", FORMATS)
def test_every_command_names_the_format(format_: str, dense: Path, data: Path, tmp_path: Path) -> None:
    said, config, change = FORMATS[format_]
    model, out = str(quantised(dense, tmp_path / "model", config, change)), tmp_path / "out"
    settings = Settings(sequence_length=128, tokens=600, rows_per_step=2)
    options = {"k": [1], "max_new_tokens": 4, "limit": 1}
    for call, more in (
        (lambda: prune(model, out, "demo:train", **SMALL), "needs weights that are plain numbers"),
        (lambda: drop_layers(model, out, "demo:train", layers=1, **SMALL), "needs weights that are plain numbers"),
        (lambda: finetune(model, str(data), out, settings=settings), "finetune needs weights that are plain numbers"),
        (lambda: pack(model, out), "pack needs weights that are plain numbers"),
        (lambda: distill(model, "demo:train", out, limit=1), ""),
        (lambda: evaluate_to(out, model, [("x", str(dense))], "demo:eval", options), ""),
        (lambda: evaluate_to(out, str(dense), [("x", model)], "demo:eval", options), ""),
        (lambda: LoadedModel.load(model), ""),
        (lambda: LoadedModel.load(model, runtime="native"), "its weights are quantised"),
    ):
        with pytest.raises(UserError, match="quantised") as raised:
            call()
        assert f"quantised ({said}" in str(raised.value) and more in str(raised.value)
        assert {path.name for path in tmp_path.iterdir()} == {"model"}, "nothing is written"
    found = inspect(model)
    assert found["quantized"].startswith(said) and found["macs_per_token"] is None
    endings = {row["name"].rpartition(".")[2] for row in found["linears"]}
    assert not endings & {"qweight", "weight_packed", "bitmask"}, "codes and masks are no linears"
    assert str(inspection_table(found).title).endswith(f"(quantised: {found['quantized']})")


def test_fp8_runs_as_transformers_unpacks_it(dense: Path, tmp_path: Path) -> None:
    """Where there is no GPU transformers dequantises it: the numbers, and so the MACs, are those of plain linears."""
    folder = quantised(dense, tmp_path / "fp8", {"quantization_config": FP8}, fp8)
    state = load_file(folder / "model.safetensors")
    plain = checkpoint.load(dense)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if f"{name}_scale_inv" in state:
                scales = state[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
                parameter.copy_(state[name].float() * scales)
    side = LoadedModel.load(folder)
    assert side.native is None
    with torch.no_grad():
        torch.testing.assert_close(side.model(IDS).logits, plain(IDS).logits, rtol=1e-3, atol=1e-3)
    nonzero = sum(int(torch.count_nonzero(p)) for n, p in plain.named_parameters() if "_proj" in n)
    assert side.weights()["macs_per_token"] == nonzero + 320 * 128 <= macs_of_config(plain.config)
    assert "fp8" in inspect(str(folder))["quantized"]
    options = {"k": [1, 3], "max_new_tokens": 8, "limit": 2, "batch_size": 2}
    found = evaluate_to(tmp_path / "out", str(folder), [("self", str(folder))], "demo:eval", options)
    assert found["drafters"][0]["alpha"] == 1 and found["drafters"][0]["c"] == 1


@pytest.mark.skipif(not native.is_built(), reason="not built")
def test_auto_takes_transformers_for_what_only_the_weights_tell(tiny_llama, tokenizer, tmp_path: Path) -> None:
    """A bias in the MLP: a llama that transformers runs, and the engine does not."""
    model = tiny_llama(mlp_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    checkpoint.save(model, tokenizer, tmp_path / "biased")
    side = LoadedModel.load(tmp_path / "biased")
    assert side.native is None and torch.equal(side.model(IDS).logits, model(IDS).logits)
    with pytest.raises(UserError, match=r"has a bias in mlp\.gate_proj: give --runtime transformers"):
        LoadedModel.load(tmp_path / "biased", runtime="native")
    checkpoint.save(tiny_llama(), tokenizer, tmp_path / "plain")
    assert LoadedModel.load(tmp_path / "plain").native is not None
