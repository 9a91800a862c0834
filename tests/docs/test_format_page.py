"""The reader on the page of the packed format reads what `pack` writes, with numpy alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import packed_folders
from blocks import code_blocks
from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.native.packed_folder import PackedReader
from sparsedraft.native.packed_format import pack_matrix, unpack_matrix

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"
made = packed_folders.made
KINDS = ["dense", "bitmask", "2:4", "3:8", "5:32", "1:2"]


@pytest.fixture(scope="module")
def reader() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code_blocks(PAGE)[-1], str(PAGE), "exec"), names)
    return names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", ["f16", "f32", "int8", "int4"])
def test_the_pages_reader_reads_every_kind(reader: dict[str, Any], kind: str, values: str) -> None:
    weight = torch.randn(7, 96, generator=torch.Generator().manual_seed(0))
    if kind == "bitmask":
        weight[weight.abs() < 0.7] = 0
    elif kind != "dense":
        weight = torch.where(keep_mask(Pattern.parse(kind), weight.abs(), 0), weight, 0)
        weight[2, :32] = 0  # groups with fewer values than N
    entry, parts = pack_matrix(weight, kind, values)
    found = reader["matrix"](entry.to_dict(), *(part(parts, name) for name in ("values", "index", "scale")))
    assert torch.equal(torch.from_numpy(found), unpack_matrix("w", entry, parts).weight())


def part(parts: dict[str, torch.Tensor], name: str) -> Any:
    return parts[name].numpy() if name in parts else None


@pytest.mark.parametrize(
    "pattern, weights", [("2:4", "f16"), ("unstructured", "int8"), (None, "int8"), ("2:4", "int4")]
)
def test_the_pages_reader_reads_a_folder(
    reader: dict[str, Any], made: Callable[..., tuple[Path, Path]], pattern: str | None, weights: str
) -> None:
    _, folder = made("llama", False, pattern, weights)
    stored = PackedReader(folder)
    found = reader["read"](folder)
    assert set(found) == set(stored.entries)
    for name, weight in found.items():
        assert torch.equal(torch.from_numpy(weight), stored.matrix(f"{name}.weight")[0].weight()), name
