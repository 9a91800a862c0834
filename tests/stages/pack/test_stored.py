"""`pack --weights stored`: a GGUF file's own weights, none rounded again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import stages
from gguf_blocks import SIZES, dequantised, quantised
from ggufs import rounded, write_gguf
from sparsedraft import load
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.native import extension
from sparsedraft.native.model import native_model
from sparsedraft.native.packed_folder import PackedReader
from sparsedraft.native.session import Engine
from sparsedraft.stages.pack import stage
from tiny import build_llama, build_tokenizer


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_the_files_own(tied: bool, tmp_path: Path) -> None:
    """Blocks byte for byte (queries and keys with their rows back in order), codes and scales of q4_0 bit for bit."""
    found = quantised(tmp_path / "m.gguf", tied)
    result = stages.pack(str(tmp_path / "m.gguf"), tmp_path / "packed", weights="stored")
    reader = PackedReader(tmp_path / "packed")
    plain = load(str(tmp_path / "m.gguf")).state_dict()
    assert json.loads((tmp_path / "packed" / "packed.json").read_text())["version"] == 3
    assert result["rounding_error"] == 0
    kinds = {name: entry.values for name, entry in reader.entries.items()}
    assert [kinds[f"model.layers.0.self_attn.{p}_proj"] for p in "qkvo"] == ["q4_k", "q6_k", "q5_k", "q8_0"]
    assert kinds["model.layers.1.mlp.gate_proj"] == "int4" and kinds["model.layers.1.mlp.up_proj"] == "f16"
    assert kinds["model.layers.1.mlp.down_proj"] == "f32"
    assert kinds["model.embed_tokens"] == "q6_k" and ("lm_head" in kinds) == (not tied)
    for name in reader.entries:  # against transformers, which reads blocks in its own way; the checkpoint is bfloat16
        weight = reader.matrix(f"{name}.weight")[0].weight()
        assert torch.equal(weight.bfloat16(), plain[f"{name}.weight"].bfloat16()), name
    for linear, name in (("mlp.gate_proj", "ffn_gate"), ("mlp.down_proj", "ffn_down")):
        kind, raw = found[f"blk.0.{name}.weight"]
        assert np.array_equal(reader.tensors(f"model.layers.0.{linear}")["values"].numpy(), raw)
        assert torch.equal(reader.matrix(f"model.layers.0.{linear}.weight")[0].weight(), dequantised(kind, raw))
    up = reader.matrix("model.layers.1.mlp.up_proj.weight")[0].weight()
    assert np.array_equal(up.numpy(), found["blk.1.ffn_up.weight"][1].astype(np.float32))
    kind, raw = found["blk.1.ffn_gate.weight"]
    assert torch.equal(reader.matrix("model.layers.1.mlp.gate_proj.weight")[0].weight(), dequantised("q4_0", raw))


@pytest.mark.skipif(not extension.is_built(), reason="not built")
@pytest.mark.parametrize("embedding", ["q6_k", "q8_0", "q4_k"])
@torch.no_grad()
def test_the_engine_runs_them(embedding: str, tmp_path: Path) -> None:
    """Logits are the model's, up to what activations of 8 bits cost; the same when it is loaded again."""
    quantised(tmp_path / "m.gguf", True, embedding)
    stages.pack(str(tmp_path / "m.gguf"), tmp_path / "packed", weights="stored")
    ids = [5, 250, 17, 301, 99, 4, 4, 120]
    expected = load(str(tmp_path / "m.gguf"))(torch.tensor([ids])).logits[0].float()
    found = Engine(tmp_path / "packed").forward(ids, len(ids))
    assert float((found - expected).norm() / expected.norm()) < 0.06
    again = Engine(tmp_path / "packed").forward(ids, len(ids))
    assert torch.equal(found, again)
    packed = load(str(tmp_path / "packed"))(torch.tensor([ids])).logits[0].float()
    assert float((packed - expected).norm() / expected.norm()) < 0.06
    fine = Engine(native_model(tmp_path / "packed", fine_inputs=True))
    found = fine.forward(ids, len(ids))
    exact = load(str(tmp_path / "packed")).dequantize()(torch.tensor([ids])).logits[0].float()
    assert float((found - exact).norm() / exact.norm()) < 1e-3
    fine.rollback(0)
    assert torch.equal(torch.cat([fine.forward([token]) for token in ids]), found)


@pytest.mark.skipif(not extension.is_built(), reason="not built")
@pytest.mark.parametrize("head", ["q4_0", "f16", "q6_k", "q8_0", None])
@torch.no_grad()
def test_trimmed_heads(head: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of any type, or the embedding where it is the head, keeps the rows of these tokens."""
    tokens = torch.arange(2, 320, 3, dtype=torch.int32)
    monkeypatch.setattr(stage, "frequent_tokens", lambda *_: (tokens, 0.0))
    quantised(tmp_path / "m.gguf", tied=head is None, head=head)
    whole, trimmed = tmp_path / "whole", tmp_path / "trimmed"
    stages.pack(str(tmp_path / "m.gguf"), whole, weights="stored")
    data = str(tmp_path / "m.gguf")  # any file: nothing reads it here
    stages.pack(str(tmp_path / "m.gguf"), trimmed, weights="stored", head_tokens=len(tokens), head_data=data)
    ids = [5, 250, 17, 301]
    expected, found = (Engine(folder).forward(ids, len(ids)) for folder in (whole, trimmed))
    assert torch.isfinite(found).sum(-1).tolist() == [len(tokens)] * len(ids)
    assert torch.equal(found[:, tokens.long()], expected[:, tokens.long()])


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    quantised(tmp_path / "m.gguf", True)
    model = build_llama(tie_word_embeddings=True, **SIZES)
    checkpoint.save(model, build_tokenizer(), tmp_path / "plain", dtype=torch.float16)
    with pytest.raises(UserError, match=r"is no \.gguf file, whose weights --weights stored keeps: give int8 or int4"):
        stages.pack(str(tmp_path / "plain"), tmp_path / "out", weights="stored")
    with pytest.raises(UserError, match="stored keeps head and embedding, too"):
        stages.pack(str(tmp_path / "m.gguf"), tmp_path / "out", weights="stored", head_weights="int8")
    raw = np.zeros((512, 256 // 256 * 110), np.uint8)  # q3_k
    blocks = {"blk.0.ffn_gate.weight": ("q3_k", raw)}
    write_gguf(tmp_path / "q3.gguf", rounded(model), build_tokenizer(), tensors=blocks)
    with pytest.raises(UserError, match=r"has model\.layers\.0\.mlp\.gate_proj as q3_k: --weights stored keeps f32, "):
        stages.pack(str(tmp_path / "q3.gguf"), tmp_path / "out", weights="stored")
    assert not (tmp_path / "out").exists()
    stages.pack(str(tmp_path / "m.gguf"), tmp_path / "packed", weights="stored")
    header = json.loads((tmp_path / "packed" / "packed.json").read_text())
    (tmp_path / "packed" / "packed.json").write_text(json.dumps(header | {"version": 2}))
    with pytest.raises(UserError, match=r"is of version 2, and model.* has blocks, which version 3 brought"):
        PackedReader(tmp_path / "packed")
