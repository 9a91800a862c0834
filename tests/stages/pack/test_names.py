"""Packing checkpoints whose tensors have other names than those of most models."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import packed_folders
from packed_folders import ENGINE, IDS, build, close, save
from sparsedraft.models import checkpoint
from sparsedraft.native import loading
from sparsedraft.native.session import Engine
from stages import pack
from tiny import build_tokenizer


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_without_the_prefix_gets_it(tied: bool, tmp_path: Path) -> None:
    """As base models are stored: what is packed is, byte for byte, what is packed of the same with the prefix."""
    source = save(build("qwen2", tied), tmp_path / "source", "2:4", torch.bfloat16)
    pack(str(source), tmp_path / "prefixed", weights="bf16")
    tensors = load_file(source / "model.safetensors")
    short = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    assert short.keys() != tensors.keys()
    save_file(short, source / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "short"
    pack(str(source), out, weights="bf16")
    for name in ("packed.json", "model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (tmp_path / "prefixed" / name).read_bytes()
    with torch.no_grad():
        wanted = checkpoint.load(source)(IDS).logits[0]
        close(loading.load(out)(IDS).logits[0], wanted, 1e-5)
    if packed_folders.BUILT:
        close(Engine(out).forward(IDS[0].tolist(), IDS.shape[1]), wanted, ENGINE)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_not_rounded_is_said_to_be_as_stored(tied: bool, tmp_path: Path) -> None:
    """GPT-NeoX calls its embedding embed_in and its head embed_out."""
    small = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = hf.GPTNeoXConfig(**small, num_attention_heads=2, tie_word_embeddings=tied)
    checkpoint.save(hf.GPTNeoXForCausalLM(config), build_tokenizer(), tmp_path / "neox")
    result = pack(str(tmp_path / "neox"), tmp_path / "packed", weights="int4")
    assert result["weights"] == "int4" and result["kinds"] == {"dense": 8}
    assert result["head_weights"] == result["embedding_weights"] == "as stored"
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("neox", "packed"))
    outside = {name for name in before if "embed" in name}
    assert len(outside) == 2 - tied and all(torch.equal(before[name], after[name]) for name in outside)


def test_a_head_is_said_to_be_what_it_is_tied_to_or_stored_as(tmp_path: Path) -> None:
    """OPT's embedding lies deeper, is tied, and is packed: the head is of its type unless it is stored beside it."""
    small = {"vocab_size": 512, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    checkpoint.save(hf.OPTForCausalLM(hf.OPTConfig(**small)), build_tokenizer(), tmp_path / "opt")
    types = {"head_weights": "bf16", "embedding_weights": "f16"}
    result = pack(str(tmp_path / "opt"), tmp_path / "packed", weights="int4", **types)
    assert types.items() <= result.items()
    result = pack(str(tmp_path / "opt"), tmp_path / "tied", weights="int4", head_weights="bf16")
    assert result["head_weights"] == result["embedding_weights"] == "bf16"
