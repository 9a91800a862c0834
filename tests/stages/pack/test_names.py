"""Packing checkpoints whose tensors have other names than those of most models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import packed_folders
from packed_folders import ENGINE, IDS, build, close, save
from sparsedraft.models import checkpoint
from sparsedraft.native import loading
from sparsedraft.native.session import Engine
from stages import pack


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
