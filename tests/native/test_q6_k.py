"""Rounding to Q6_K, read back by the `gguf` package and by our own engine."""

import sys
from pathlib import Path

import pytest
import torch

import stages
from gguf_blocks import SIZES
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.native import blocks, extension
from sparsedraft.native.loading import load
from sparsedraft.native.packed_folder import PackedReader
from sparsedraft.native.q6_k import q6_k
from sparsedraft.native.session import Engine
from tiny import build_llama, build_tokenizer


def weights(rows: int = 64, columns: int = 512) -> torch.Tensor:
    """Rows of very different sizes, with zeros, a row of zeros, and an outlier."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)
    weight[0] = 0
    weight[1, 16:32] = 0
    weight[2, 7] = 50
    weight[3] *= 1e-4
    weight[:, ::5] = 0
    return weight


def test_the_error_is_that_of_six_bits() -> None:
    weight = weights()
    found = blocks.weight("q6_k", q6_k(weight))
    assert bool((found[weight == 0] == 0).all())
    apart, error = weight.view(-1, 16), (found - weight).view(-1, 16)
    # half a step of a scale whose largest code is 31, and half a unit of that scale, which is rounded, too
    steps = apart.abs().amax(1) / 31
    unit = weight.view(-1, 256).abs().amax(1).repeat_interleave(16) / 31 / 128
    unit = unit.clamp(min=2**-24)  # the smallest float16
    assert bool((error.abs().amax(1) <= 0.55 * steps + 16.5 * unit).all())
    naive = (apart / steps[:, None]).nan_to_num().round() * steps[:, None]
    plain = weight.view(-1, 256).abs().amax(1).repeat_interleave(16) < 4 * apart.abs().amax(1)  # no outlier beside
    assert float(error[plain].norm()) < 0.95 * float((naive - apart)[plain].norm())


def test_what_it_wrote_stays() -> None:
    once = blocks.weight("q6_k", q6_k(weights()))
    twice = blocks.weight("q6_k", q6_k(once))
    once_error = float((once - weights()).norm())
    assert float((twice - once).norm()) < 0.25 * once_error


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = q6_k(weights())
    monkeypatch.setattr("sparsedraft.native.q6_k.CHUNK", 1024)
    assert torch.equal(q6_k(weights()), whole)


def test_a_weight_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="a weight does not fit q6_k: give bf16"):
        q6_k(torch.full((1, 256), 1e12))


@pytest.mark.skipif(not extension.is_built(), reason="not built")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("embedding", ["q6_k", "int8"])
@torch.no_grad()
def test_packed_head(tied: bool, embedding: str, tmp_path: Path) -> None:
    """The engine multiplies what it was packed as; a tied head of the embedding's type is stored once."""
    model = build_llama(tie_word_embeddings=tied, **SIZES)
    checkpoint.save(model, build_tokenizer(), tmp_path / "source", dtype=torch.float32)
    how = {"weights": "int4", "head_weights": "q6_k", "embedding_weights": embedding}
    result = stages.pack(str(tmp_path / "source"), tmp_path / "packed", **how)
    assert (result["head_weights"], result["embedding_weights"]) == ("q6_k", embedding)
    assert ("lm_head" in PackedReader(tmp_path / "packed").entries) == (not tied or embedding != "q6_k")
    ids = [5, 250, 17, 301]
    expected = load(str(tmp_path / "packed")).dequantize()(torch.tensor([ids])).logits[0].float()
    found = Engine(tmp_path / "packed").forward(ids, len(ids))
    assert float((found - expected).norm() / expected.norm()) < 0.06
    head = blocks.weight("q6_k", q6_k(model.get_output_embeddings().weight.detach().float()))
    unpacked = load(str(tmp_path / "packed")).dequantize().get_output_embeddings().weight
    assert torch.equal(unpacked.float(), head)


def test_rows_that_are_no_blocks(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"embed_tokens.weight: rows of \d+ are no multiple of 256, which q6_k needs"):
        stages.pack(str(tiny_checkpoint), tmp_path / "packed", weights="int4", head_weights="q6_k")
    assert not (tmp_path / "packed").exists()


def test_without_the_package_that_reads_it_nothing_is_begun(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"read by the package gguf: pip install 'sparsedraft\[gguf\]'"):
        stages.pack(str(tiny_checkpoint), tmp_path / "packed", weights="int4", head_weights="q6_k")
    assert [*tmp_path.glob("packed*")] == []
