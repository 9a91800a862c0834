"""A packed folder: packed.json says how each matrix is stored, safetensors files hold the tensors."""

import math
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object
from sparsedraft.models.shards import Shards
from sparsedraft.native.blocks import BLOCKS
from sparsedraft.native.packed_format import PARTS, MatrixEntry, unpack_matrix
from sparsedraft.native.stored_matrix import StoredMatrix

HEADER = "packed.json"
FORMAT = "sparsedraft-packed"
# 2 where a matrix is of int4 or for inputs of 8 bits, 3 where one has the blocks of a GGUF file, 4 where a sparse one
# is for inputs of 8 bits
VERSIONS = (1, 2, 3, 4)
# tensors with tokens, ascending (int32): of a trimmed head; the frequent ones of a head that follows the text
HEAD_IDS, HEAD_BASE = "sparsedraft.head_ids", "sparsedraft.head_base"


def version_of(entries: dict[str, dict[str, Any]]) -> int:
    """The version of a header with these entries: the lowest that has them, so that older programs read the folder."""
    if any("activations" in entry and entry["kind"] != "dense" for entry in entries.values()):
        return 4
    if any(entry["values"] in BLOCKS for entry in entries.values()):
        return 3
    return 2 if any({"group", "activations"} & set(entry) for entry in entries.values()) else 1


def is_packed(folder: Path) -> bool:
    return (folder / HEADER).is_file()


def read_header(folder: Path) -> dict[str, MatrixEntry]:
    """The packed matrices of `folder` by the name of their linear; UserError where the header cannot be read."""
    file = folder / HEADER
    raw = read_object(file, "pack the checkpoint again")
    if raw.get("format") != FORMAT or not isinstance(raw.get("linears"), dict):
        raise UserError(f"packed header {file} is not a {FORMAT} one: pack the checkpoint again.")
    if type(raw.get("version")) is not int or raw["version"] not in VERSIONS:
        raise UserError(
            f"packed header {file} is of version {str(raw.get('version'))[:40]}, and this reads 1 to 4: pack "
            "the checkpoint again."
        )
    entries = {name: MatrixEntry.parse(name, entry) for name, entry in raw["linears"].items()}
    if raw["version"] < 3 and (blocks := next((name for name, entry in entries.items() if entry.blocks), None)):
        raise UserError(
            f"packed header {file} is of version {raw['version']}, and {blocks} has blocks, which version 3 brought: "
            "pack the file again."
        )
    return entries


def pattern_of(folder: Path) -> str:
    """The pattern of most linears of a packed folder: dense, unstructured or N:M."""
    kinds = Counter(entry.kind for name, entry in read_header(folder).items() if name.endswith("_proj"))
    kind = kinds.most_common(1)[0][0] if kinds else "dense"
    return "unstructured" if kind == "bitmask" else kind


class PackedReader:
    """Reads the weights of a packed folder (see weight_reader.WeightReader).

    Raises UserError where the header cannot be read or does not fit the tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = read_header(folder)
        self._shards = Shards(folder)
        stored = set(self._shards.files)
        self.bytes = sum(map(self._shards.bytes, stored))
        parts = {f"{name}.{part}" for name in self.entries for part in PARTS}
        lacking = [name for name in self.entries if f"{name}.values" not in stored]
        if lacking:
            raise UserError(f"packed folder {folder} lacks the values of {lacking[0]}: pack the checkpoint again.")
        self.names = frozenset({f"{name}.weight" for name in self.entries} | (stored - parts - {HEAD_IDS, HEAD_BASE}))

    def vector(self, name: str) -> Tensor:
        return self._shards.tensor(name).float()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The stored tensors of the matrix `name`."""
        names = {part: f"{name}.{part}" for part in PARTS}
        return {part: self._shards.tensor(full) for part, full in names.items() if full in self._shards.files}

    def stored_bytes(self, name: str) -> int:
        """Bytes of the matrix `name` in the files."""
        names = (f"{name}.{part}" for part in PARTS)
        return sum(self._shards.bytes(full) for full in names if full in self._shards.files)

    def stored_values(self, name: str) -> int:
        """How many values of the matrix `name` are stored; of int4 perhaps one more, which fills a byte."""
        count, entry = math.prod(self._shards.shapes[f"{name}.values"]), self.entries[name]
        if entry.blocks:
            return entry.rows * entry.columns
        return 2 * count if entry.values == "int4" else count

    @property
    def head_rows(self) -> int | None:
        """Rows of a trimmed head; None for a whole one."""
        return self._shards.shapes[HEAD_IDS][0] if HEAD_IDS in self._shards.files else None

    @property
    def follows(self) -> bool:
        """Whether the head follows the text."""
        return HEAD_BASE in self._shards.files

    @property
    def drafted_rows(self) -> int | None:
        """Rows of the head that a draft always looks at; None for all."""
        return self._shards.shapes[HEAD_BASE][0] if self.follows else self.head_rows

    def scale(self, name: str) -> Tensor | None:
        """The scale of the matrix `name` as stored; None where it has none."""
        return self._scales.get(f"{name}.scale")

    @cached_property
    def _scales(self) -> dict[str, Tensor]:
        """All scales at once: they are small, and one by one they would take longer than the rest of loading."""
        return self._shards.several([name for name in self._shards.files if name.endswith(".scale")])

    def matrix(self, name: str) -> tuple[StoredMatrix, str]:
        linear = name.removesuffix(".weight")
        entry = self._entry(linear)
        return unpack_matrix(linear, entry, self.tensors(linear)), entry.kind

    def table(self, name: str) -> tuple[MatrixEntry, dict[str, Tensor]]:
        entry = self._entry(linear := name.removesuffix(".weight"))
        if entry.kind != "dense":
            raise UserError(
                f"packed folder {self.folder} has {linear} of kind {entry.kind}, and an embedding is dense: pack the "
                "checkpoint again."
            )
        return entry, self.tensors(linear)

    def _entry(self, linear: str) -> MatrixEntry:
        if linear not in self.entries:
            raise UserError(f"packed folder {self.folder} does not pack {linear}: pack the checkpoint again.")
        return self.entries[linear]

    def head_ids(self) -> Tensor | None:
        return self._tokens(HEAD_IDS)

    def head_base(self) -> Tensor | None:
        return self._tokens(HEAD_BASE)

    def _tokens(self, name: str) -> Tensor | None:
        if name not in self._shards.files:
            return None
        ids = self._shards.tensor(name)
        if ids.dtype != torch.int32 or ids.dim() != 1 or not _ascends(ids):
            raise UserError(f"packed folder {self.folder} has head ids that do not ascend: pack the checkpoint again.")
        return ids.long()


def _ascends(ids: Tensor) -> bool:
    return len(ids) > 0 and int(ids[0]) >= 0 and bool((ids[1:] > ids[:-1]).all())
