"""Tensors read from shards."""

import struct
from pathlib import Path

import torch
from safetensors.torch import save_file

from sparsedraft.models.shards import Shards


def test_numbers_that_lie_askew_are_moved(tmp_path: Path) -> None:
    """A header of odd length puts every tensor at an odd address, from which C++ may not read floats."""
    save_file({"a": torch.arange(6.0)}, tmp_path / "model.safetensors")
    raw = (tmp_path / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    for pad in range(1, 9):
        (tmp_path / "model.safetensors").write_bytes(
            struct.pack("<Q", size + pad) + raw[8 : 8 + size] + b" " * pad + raw[8 + size :]
        )
        tensor = Shards(tmp_path).tensor("a")
        assert tensor.data_ptr() % 4 == 0 and torch.equal(tensor, torch.arange(6.0))
