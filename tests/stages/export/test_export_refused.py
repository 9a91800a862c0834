"""What cannot be exported is refused in one sentence before anything is written; what fails leaves nothing behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from packed_folders import SMALL, save
from sparsedraft.base.errors import UserError
from sparsedraft.models.gguf import write_file
from stages import export, pack
from tiny import build_llama


def changed(folder: Path, **fields: Any) -> None:
    """Other fields in config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def qwen(**fields: Any) -> Callable[[], Any]:
    return lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SMALL | fields))


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "architecture": (
        lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**SMALL)),
        "is a Gemma3ForCausalLM: LlamaForCausalLM, .* and Qwen3ForCausalLM can be exported",
    ),
    "activation": (lambda: build_llama(layers=1, hidden_act="gelu"), "has hidden_act gelu, which llama.cpp's llama"),
    "window": (
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**SMALL, sliding_window=16)),
        "has (layer_types|sliding_window)",
    ),
    "some windows": (
        qwen(use_sliding_window=True, sliding_window=16, max_window_layers=1),
        "has layer_types .*sliding_attention",
    ),
    "biases": (
        lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SMALL, attention_bias=True)),
        "has attention_bias True, which llama.cpp's qwen3",
    ),
    "width": (qwen(head_dim=24), "has head_dim 24"),
    "dynamic": (
        lambda: build_llama(layers=1, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "a rotary embedding with rope_type dynamic",
    ),
    "llama3 elsewhere": (
        qwen(
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }
        ),
        "a rotary embedding with rope_type llama3, which llama.cpp's qwen2",
    ),
    "yarn": (
        lambda: build_llama(
            layers=1,
            rope_parameters={
                "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64,
                "mscale": 0.7,
            },
        ),
        r"a rotary embedding with mscale 0\.7",
    ),
    "vocabulary": (lambda: build_llama(layers=1, vocab_size=310), "has the token 319, and .* embedding 310 rows"),
}  # fmt: skip


def refused(folder: Path, message: str, out: Path | None = None, **options: Any) -> None:
    """The export is refused with this message, in one line, and nothing new lies beside the folder."""
    before = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    with pytest.raises(UserError, match=message) as raised:
        export(folder, out or folder.parent / "a.gguf", options.pop("kind", "q8_0"), **options)
    assert "\n" not in str(raised.value)
    assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")} == before


@pytest.mark.parametrize("name", MODELS)
def test_models(tmp_path: Path, name: str) -> None:
    build, message = MODELS[name]
    save(build(), tmp_path / "a")
    refused(tmp_path / "a", message)


def spoilt(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "tokenizer.json"
        found = json.loads(file.read_text())
        change(found)
        file.write_text(json.dumps(found))

    return spoil


AROUND = {"single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}
TOKENIZERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "split": (
        spoilt(lambda t: t.update(pre_tokenizer={"type": "Whitespace"})),
        "splits text otherwise than gpt-2, smollm, qwen2",
    ),
    "prefix": (spoilt(lambda t: t["pre_tokenizer"].update(add_prefix_space=True)), "splits text otherwise"),
    "whole words": (spoilt(lambda t: t["model"].update(ignore_merges=True)), "splits text otherwise"),
    "normalizer": (spoilt(lambda t: t.update(normalizer={"type": "Lowercase"})), "changes text before .*Lowercase"),
    "sentencepiece": (spoilt(lambda t: t["model"].update(byte_fallback=True)), "is a BPE that is not byte-level"),
    "around": (
        spoilt(
            lambda t: t.update(
                post_processor={
                    "type": "TemplateProcessing", **AROUND, "pair": [*AROUND["single"]],
                    "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
                }
            )
        ),
        "puts other tokens around a text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(tmp_path: Path, name: str) -> None:
    spoil, message = TOKENIZERS[name]
    save(build_llama(layers=1), tmp_path / "a")
    spoil(tmp_path / "a")
    refused(tmp_path / "a", message)


def test_checkpoints(tmp_path: Path) -> None:
    save(build_llama(layers=2), tmp_path / "a")
    changed(tmp_path / "a", num_hidden_layers=1)
    refused(tmp_path / "a", r"holds model\.layers\.1\..*, for which its config.json has no place")
    changed(tmp_path / "a", num_hidden_layers=3)
    refused(tmp_path / "a", r"lacks model\.layers\.2\.")
    changed(tmp_path / "a", num_hidden_layers=2, intermediate_size=64)
    refused(tmp_path / "a", r"has model\.layers\.0\.mlp\.gate_proj\.weight of \[128, 64\]")


def test_a_trimmed_head(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from stages import distill

    distill(str(tiny_checkpoint), "demo:train", tmp_path / "data", limit=2, max_new_tokens=8)
    shutil.copytree(tiny_checkpoint, tmp_path / "a")
    pack(str(tmp_path / "a"), tmp_path / "packed", head_tokens=20, head_data=str(tmp_path / "data"))
    refused(tmp_path / "packed", "a head trimmed to 20 tokens, .* without --head-tokens")


def test_places(tmp_path: Path) -> None:
    folder = save(build_llama(layers=1), tmp_path / "models" / "a")
    (tmp_path / "file").write_text("a")
    (tmp_path / "other.gguf").write_text("not one")
    (tmp_path / "link.gguf").symlink_to("other.gguf")
    (tmp_path / "folder.gguf").mkdir()
    refused(folder, r"does not end in \.gguf", tmp_path / "a.bin")
    refused(folder, "which is a file: name another folder", tmp_path / "file" / "a.gguf")
    refused(folder, r"other\.gguf is there already: .* --overwrite", tmp_path / "other.gguf")
    refused(folder, "holds something that is not GGUF", tmp_path / "other.gguf", overwrite=True)
    refused(folder, "is a symbolic link", tmp_path / "link.gguf", overwrite=True)
    refused(folder, "is a folder", tmp_path / "folder.gguf", overwrite=True)
    refused(folder, "lies in the input", folder / "a.gguf")
    export(folder, tmp_path / "a.gguf", "bf16")
    before = (tmp_path / "a.gguf").read_bytes()
    refused(folder, "is there already", tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == before
    export(folder, tmp_path / "a.gguf", "q8_0", overwrite=True)
    assert (tmp_path / "a.gguf").read_bytes() != before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(build_llama(layers=1), tmp_path / "a")
    export(folder, tmp_path / "whole.gguf", "bf16")
    size = (tmp_path / "whole.gguf").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(size, 1, size - 1))  # type: ignore[attr-defined]
    refused(folder, rf"bytes, and {size - 1:,} are free there", kind="bf16")


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "bf16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, kind: str, value: float) -> None:
    model = build_llama(layers=2)
    model.model.layers[1].mlp.down_proj.weight.data[3, 70] = value
    save(model, tmp_path / "a", dtype=torch.bfloat16)
    refused(tmp_path / "a", r"model\.layers\.1\.mlp\.down_proj\.weight.* finite", kind=kind)
    model.model.layers[1].mlp.down_proj.weight.data[3, 70] = 1
    model.model.norm.weight.data[7] = value
    save(model, tmp_path / "a", dtype=torch.bfloat16)
    refused(tmp_path / "a", r"model\.norm\.weight has a weight that is not finite", kind=kind)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, UserError])
def test_an_export_that_stops_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    folder = save(build_llama(layers=1), tmp_path / "a")
    export(folder, tmp_path / "a.gguf", "bf16")
    before = (tmp_path / "a.gguf").read_bytes()
    written = []
    monkeypatch.setattr(
        write_file.GGUFWriter, "write_tensor_data", lambda self, data: written.append(1) if len(written) < 3 else stop()
    )

    def stop() -> None:
        raise error("stopped")

    for out in ("a.gguf", "b.gguf"):
        written.clear()
        with pytest.raises(error):
            export(folder, tmp_path / out, "q8_0", overwrite=True)
    assert (tmp_path / "a.gguf").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.gguf"}


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    folder = save(build_llama(layers=1), tmp_path / "a")
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(folder, r"pip install 'sparsedraft\[gguf\]'")
