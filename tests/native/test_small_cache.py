"""Keys and values of 8 bits: near those of 16, and the same bits however tokens come."""

import random
from pathlib import Path

import pytest
import torch
import transformers as hf

from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.native import extension as native
from sparsedraft.native.architecture import cache_bytes
from sparsedraft.native.cache_size import bytes_per_token
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Engine, Session
from sparsedraft.writers.loaded import LoadedModel
from tiny import build_llama, build_tokenizer

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the extension was not built")
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 40}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = build_llama(layers=3, **HEADS)
    checkpoint.save(model, build_tokenizer(), tmp_path / "model", dtype=torch.float16)
    return tmp_path / "model"


def ids_of(count: int) -> list[int]:
    return torch.randint(3, 320, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def test_logits_are_near_and_not_the_same(folder: Path) -> None:
    ids = ids_of(90)
    wide = Engine(native_model(folder)).forward(ids, len(ids))
    small = Engine(native_model(folder, "int8")).forward(ids, len(ids))
    assert 0 < float((small - wide).norm() / wide.norm()) < 0.05


def biased(kind: str, tmp_path: Path) -> Path:
    """A model whose keys have a few dimensions that are far larger than the others, as Qwen2's biases make them."""
    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, **HEADS}
    torch.manual_seed(0)
    config = {"qwen2": hf.Qwen2Config, "qwen3": hf.Qwen3Config}[kind]
    model = hf.AutoModelForCausalLM.from_config(config(**sizes, initializer_range=0.2)).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            if kind == "qwen2":  # dimension 3 of both heads of keys; queries of its rotary pair are small
                layer.self_attn.k_proj.bias[[3, 43]] = torch.tensor([100.0, -80.0])
                layer.self_attn.q_proj.weight.view(4, 40, 64)[:, [3, 23]] *= 0.01
            else:
                layer.self_attn.k_norm.weight[3] = 100.0
                layer.self_attn.q_norm.weight[[3, 23]] = 0.01
    checkpoint.save(model, build_tokenizer(), tmp_path / kind, dtype=torch.float32)
    return tmp_path / kind


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_large_dimensions_leave_bits_to_the_others(kind: str, tmp_path: Path) -> None:
    """With one scale for a whole key the error is several times larger."""
    folder, ids = biased(kind, tmp_path), ids_of(90)
    wide = Engine(native_model(folder)).forward(ids, len(ids))
    small = Engine(native_model(folder, "int8")).forward(ids, len(ids))
    assert 0 < float((small - wide).norm() / wide.norm()) < 0.04


def test_however_the_tokens_come(folder: Path) -> None:
    """Pieces, roll-backs, beside another sequence, and as nodes of a tree: a token's logits have the same bits."""
    ids, chance = ids_of(90), random.Random(0)
    model = native_model(folder, "int8")
    engine = Engine(model, threads=2)
    expected = engine.forward(ids, len(ids))
    for _ in range(20):
        engine.rollback(max(0, min(engine.length, 80) - chance.randint(0, 9)))
        at = engine.length
        count = chance.randint(1, 90 - at)
        assert torch.equal(engine.forward(ids[at : at + count], count), expected[at : at + count])
    session = Session(model, 2, threads=2)
    both = session.forward([ids[:60], ids_of(33)], [60, 33])
    assert torch.equal(both[0], expected[:60]) and torch.equal(both[1], expected[:33])
    engine.rollback(0)
    engine.forward(ids[:70], 0)
    tree = engine.forward([9, *ids[70:74]], 5, [-1, -1, 1, 2, 3])
    assert torch.equal(tree[1:], expected[70:74])
    engine.keep(70, [1, 2, 3, 4])
    assert torch.equal(engine.forward(ids[74:], 16), expected[74:])


def test_bytes_are_counted(folder: Path) -> None:
    """Half of 16 bits, and two scales of 4 bytes a head; values of 40 numbers are padded to 64."""
    config = checkpoint.read_config(folder)
    assert cache_bytes(config) == {"int16": 3 * 2 * (2 * 104 + 8), "int8": 3 * 2 * (104 + 8)}
    assert bytes_per_token(28, 2, 128) == {"int16": 28 * 2 * 520, "int8": 28 * 2 * 264}
    assert cache_bytes(hf.GPT2Config()) is None


def test_where_it_cannot_be(folder: Path) -> None:
    with pytest.raises(UserError, match="--cache int8 is the native engine's: leave it out, or --runtime transformers"):
        LoadedModel.load(folder, runtime="transformers", cache="int8")
    with pytest.raises(UserError, match="--cache int8 needs the native engine, which does not run model"):
        LoadedModel.load(folder, dtype="bfloat16", cache="int8")
    with pytest.raises(UserError, match="--cache int4 is not known: choose one of int16, int8"):
        LoadedModel.load(folder, cache="int4")
