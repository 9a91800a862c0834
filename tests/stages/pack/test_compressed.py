"""Folders of compressed-tensors: what is stored is what our own rounding gives, and every zero stays a zero."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

import packed_folders
import stages
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object
from sparsedraft.maths.quantization import snap
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.stages.pack.options import PackOptions
from tiny import build_llama

made = packed_folders.made  # fixture


def weight(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """A linear's weight, by the words of the format's own documentation."""
    if f"{name}.weight" in tensors:
        return tensors[f"{name}.weight"].float() * tensors[f"{name}.weight_scale"]
    rows, columns = tensors[f"{name}.weight_shape"].tolist()
    packed = tensors[f"{name}.weight_packed"]
    codes = torch.stack([(packed >> 4 * place) & 15 for place in range(8)], -1).flatten(1)[:, :columns] - 8
    scale = tensors[f"{name}.weight_scale"].float().repeat_interleave(32, 1)[:, :columns]
    assert codes.shape == (rows, columns)
    return codes * scale


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_weights_are_rounded_as_ours_and_zeros_stay(
    made: Callable[..., tuple[Path, Path]], tmp_path: Path, pattern: str, weights: str
) -> None:
    source = made("qwen2", False, pattern)[0]
    result = stages.pack(str(source), tmp_path / "out", weights=weights, format="compressed-tensors")
    tensors, model = load_file(tmp_path / "out" / "model.safetensors"), checkpoint.load(source)
    for name, linear in decoder_linears(model).items():
        found = weight(tensors, name)
        assert torch.equal(found, snap(linear.weight.detach(), weights))
        assert bool((found[linear.weight == 0] == 0).all()) and bool((linear.weight == 0).any())
    plain = {name for name in model.state_dict() if name.removesuffix(".weight") not in decoder_linears(model)}
    assert plain <= set(tensors) and torch.equal(tensors["lm_head.weight"].float(), model.lm_head.weight)
    described = read_object(tmp_path / "out" / "config.json")["quantization_config"]
    assert described["quant_method"] == result["format"] == "compressed-tensors"
    assert described["config_groups"]["group_0"]["weights"]["num_bits"] == int(weights.removeprefix("int"))


def test_linears_outside_of_the_layers_are_named_as_whole(tmp_path: Path) -> None:
    """As OPT's projections beside its embedding, which a reader would otherwise look for as rounded ones."""
    model = OPTForCausalLM(OPTConfig(
        vocab_size=320, hidden_size=64, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64,
    ))  # fmt: skip
    source = packed_folders.save(model, tmp_path / "opt")
    stages.pack(str(source), tmp_path / "out", weights="int8", format="compressed-tensors")
    described = read_object(tmp_path / "out" / "config.json")["quantization_config"]
    assert described["ignore"] == ["model.decoder.project_out", "model.decoder.project_in", "lm_head"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensors[f"{name}.weight"].is_floating_point() for name in described["ignore"] if name != "lm_head")


def test_int4_of_odd_sizes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = packed_folders.save(build_llama(intermediate_size=100), tmp_path / "odd")
    with pytest.raises(UserError, match=r"down_proj of 100 inputs, .*: give --weights int8"):
        stages.pack(str(source), tmp_path / "out", weights="int4", format="compressed-tensors")
    assert not (tmp_path / "out").exists()
    stages.pack(str(source), tmp_path / "out", weights="int8", format="compressed-tensors")


@pytest.mark.parametrize(
    ("given", "named"),
    [({"weights": "bf16"}, "weights"), ({"head_weights": "int8"}, "head-weights"), ({"activations": 8}, "activations")],
)
def test_what_the_format_cannot_express_is_refused(tmp_path: Path, given: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=f"compressed-tensors .*{named}"):
        PackOptions(model="m", out=tmp_path, format="compressed-tensors", **{"weights": "int8", **given})
