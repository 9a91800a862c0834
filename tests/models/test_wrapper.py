"""Text models inside a vision wrapper: found, run alone with the wrapper's own logits, and written as plain models."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import packed_folders
from packed_folders import ENGINE, IDS, SMALL, close
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.models.macs import macs_of_config
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.native.session import Engine
from sparsedraft.writers.loaded import LoadedModel
from stages import drop_layers, inspect, pack, prune
from tiny import build_tokenizer

FEW = {"tokens": 256, "sequence_length": 64}
PICTURES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e5}
TEXT = {**SMALL, "num_hidden_layers": 3}
WRAPPERS = {
    "gemma3": lambda: hf.Gemma3Config(
        text_config={"model_type": "gemma3_text", **TEXT, "sliding_window": 4, "query_pre_attn_scalar": 16},
        vision_config={"model_type": "siglip_vision_model", **PICTURES},
        mm_tokens_per_image=4,
        image_token_index=319,
        boi_token_index=318,
        eoi_token_index=317,
        eos_token_id=[2, 9],
    ),
    "mistral3": lambda: hf.Mistral3Config(
        text_config={"model_type": "mistral", **TEXT, "rope_parameters": ROPE},
        vision_config={"model_type": "pixtral", **PICTURES},
        image_token_index=319,
        tie_word_embeddings=False,
    ),
    "llava": lambda: hf.LlavaConfig(
        text_config={"model_type": "llama", **TEXT, "rope_parameters": ROPE},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **PICTURES},
        image_token_index=319,
    ),
}
PLAIN = {"gemma3": "Gemma3ForCausalLM", "mistral3": "MistralForCausalLM", "llava": "LlamaForCausalLM"}
NATIVE = [pytest.param(True, marks=pytest.mark.skipif(not packed_folders.BUILT, reason="not built")), False]


@pytest.fixture(scope="module", params=WRAPPERS)
def wrapper(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(name, folder, the wrapper's logits [n, V] on text). Read only."""
    folder = tmp_path_factory.mktemp("wrapped") / request.param
    torch.manual_seed(0)
    model = hf.AutoModelForImageTextToText.from_config(WRAPPERS[request.param]()).eval()
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    with torch.no_grad():
        return request.param, folder, model(input_ids=IDS).logits[0]


def test_the_text_model_alone_has_the_wrappers_logits(wrapper) -> None:
    name, folder, expected = wrapper
    assert checkpoint.find(folder) == folder
    model = checkpoint.load(folder)
    assert type(model).__name__ == PLAIN[name]
    with torch.no_grad():
        close(model(IDS).logits[0], expected, 1e-5)
    assert macs_of_config(checkpoint.read_config(folder)) == inspect(str(folder))["macs_dense"]


@pytest.mark.parametrize("natively", NATIVE)
def test_it_runs_and_is_packed(wrapper, natively: bool, tmp_path: Path) -> None:
    name, folder, expected = wrapper
    side = LoadedModel.load(folder, runtime="native" if natively else "transformers")
    assert side.eos_ids == ({2, 9} if name == "gemma3" else {2})
    backend = side.backend(1)
    close(backend.forward([IDS[0].tolist()], [IDS.shape[1]])[0], expected, ENGINE if natively else 1e-5)
    pack(str(folder), tmp_path / "packed", weights="bf16")
    with torch.no_grad():
        close(checkpoint.load(tmp_path / "packed")(IDS).logits[0], expected, 0.08)  # rounded to bf16
    if natively:
        close(Engine(tmp_path / "packed").forward(IDS[0].tolist(), IDS.shape[1]), expected, 0.08)  # rounded to bf16


def test_what_is_written_of_it_is_a_plain_checkpoint(wrapper, tmp_path: Path) -> None:
    name, folder, expected = wrapper
    prune(str(folder), tmp_path / "pruned", "demo:train", pattern="2:4", **FEW)
    drop_layers(str(folder), tmp_path / "cut", "demo:train", layers=1, **FEW)
    checkpoint.save(checkpoint.load(folder), build_tokenizer(), tmp_path / "saved")
    for place in ("pruned", "cut", "saved"):
        told = json.loads((tmp_path / place / "config.json").read_text())
        assert told["architectures"] == [PLAIN[name]] and "text_config" not in told and "vision_config" not in told
        stored = load_file(tmp_path / place / "model.safetensors")
        assert not any("vision" in key or "language_model" in key for key in stored)
        assert not (tmp_path / place / "preprocessor_config.json").exists()
        model, info = hf.AutoModelForCausalLM.from_pretrained(tmp_path / place, output_loading_info=True)
        assert type(model).__name__ == PLAIN[name] and not info["missing_keys"] and not info["unexpected_keys"]
        assert end_ids(tmp_path / place, build_tokenizer()) == ({2, 9} if name == "gemma3" else {2})
        if place == "saved":
            with torch.no_grad():
                close(model(IDS).logits[0], expected, 1e-5)
        elif packed_folders.BUILT:
            with torch.no_grad():
                close(Engine(tmp_path / place).forward(IDS[0].tolist(), IDS.shape[1]), model(IDS).logits[0], ENGINE)
    assert inspect(str(tmp_path / "pruned"))["claim_holds"] is True


def test_newer_names_are_read_too(wrapper, tmp_path: Path) -> None:
    """As transformers 4.5x wrote some: model.language_model.layers..., and a head of the wrapper's own."""
    _, folder, expected = wrapper
    build_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    old = load_file(folder / "model.safetensors")
    new = {k.replace("language_model.model.", "model.language_model."): v for k, v in old.items()}
    new = {k.replace("language_model.lm_head.", "lm_head."): v for k, v in new.items()}
    save_file(new, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        close(checkpoint.load(tmp_path)(IDS).logits[0], expected, 1e-5)


def test_a_quantised_wrapper_is_refused(wrapper, tmp_path: Path) -> None:
    _, folder, _ = wrapper
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    fields = json.loads((tmp_path / "config.json").read_text())
    quantised = {**fields, "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(UserError, match="is quantised with its wrapper: give the original checkpoint"):
        checkpoint.find(tmp_path)
