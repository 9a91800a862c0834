"""The weights of a checkpoint, packed or plain, one tensor at a time."""

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sparsedraft.base.errors import Unsupported, UserError
from sparsedraft.base.sidefiles import read_object
from sparsedraft.models import claims
from sparsedraft.models.shards import Shards
from sparsedraft.native import kinds
from sparsedraft.native.packed import Entry, unpack

HEADER = "packed.json"
FORMAT, VERSION = "sparsedraft-packed", 1
HEAD_IDS = "sparsedraft.head_ids"  # the tensor with the tokens of a trimmed head, ascending (int32)
FLOATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


class Weights(Protocol):
    """What a model is built from."""

    names: frozenset[str]  # of every tensor, as the checkpoint of plain weights calls them
    bytes: int  # of all tensors, as stored

    def vector(self, name: str) -> Tensor:
        """A norm's weight or a bias, float32."""
        ...

    def matrix(self, name: str) -> tuple[Tensor, Tensor | None, str]:
        """(values [rows, columns], the scale [rows] of int8, the packed kind) of a linear or an embedding."""
        ...

    def head_ids(self) -> Tensor | None:
        """The tokens of a trimmed head, ascending; None where it is whole."""
        ...


class PlainWeights:
    """A Hugging Face checkpoint as it is; a linear's kind is what its zeros allow."""

    def __init__(self, folder: Path) -> None:
        self._shards = Shards(folder)
        self.names = frozenset(self._shards.files)
        self.bytes = sum(map(self._shards.bytes, self.names))
        self._claim = claims.claim_of(folder) or {"linears": {}}
        self._folder = folder

    def vector(self, name: str) -> Tensor:
        return self._shards.tensor(name).float()

    def matrix(self, name: str) -> tuple[Tensor, Tensor | None, str]:
        if name not in self.names:
            raise Unsupported(f"model {self._folder} lacks {name}: give a whole checkpoint.")
        weight = self._shards.tensor(name)
        if weight.dtype not in FLOATS:
            raise Unsupported(
                f"model {self._folder} stores {name} as {weight.dtype}: give a checkpoint of 16 or 32-bit floats."
            )
        linear = name.removesuffix(".weight")
        if linear in self._claim["linears"]:
            claims.check_claim(self._claim, linear, weight, self._folder)
        return weight, None, kinds.kind_of(weight) if linear in self._claim["linears"] else "dense"

    def head_ids(self) -> Tensor | None:
        return None


class PackedWeights:
    """A packed folder. Raises UserError where its header is not one of this version or does not fit its tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = read_header(folder)
        self._shards = Shards(folder)
        stored = set(self._shards.files)
        self.bytes = sum(map(self._shards.bytes, stored))
        parts = {f"{name}.{part}" for name in self.entries for part in ("values", "index", "scale")}
        lacking = [name for name in self.entries if f"{name}.values" not in stored]
        if lacking:
            raise UserError(f"packed folder {folder} lacks the values of {lacking[0]}: pack the checkpoint again.")
        self.names = frozenset({f"{name}.weight" for name in self.entries} | (stored - parts - {HEAD_IDS}))

    def vector(self, name: str) -> Tensor:
        return self._shards.tensor(name).float()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What is stored of the packed matrix `name`."""
        found = {part: f"{name}.{part}" for part in ("values", "index", "scale")}
        return {part: self._shards.tensor(full) for part, full in found.items() if full in self._shards.files}

    def scale(self, name: str) -> Tensor | None:
        """The scale of the packed matrix `name` as stored; None where it has none."""
        return self._scales.get(f"{name}.scale")

    @cached_property
    def _scales(self) -> dict[str, Tensor]:
        """All of them: small, and one by one they would take longer than the rest of loading."""
        return self._shards.several([name for name in self._shards.files if name.endswith(".scale")])

    def matrix(self, name: str) -> tuple[Tensor, Tensor | None, str]:
        linear = name.removesuffix(".weight")
        if linear not in self.entries:
            raise UserError(f"packed folder {self.folder} does not pack {linear}: pack the checkpoint again.")
        entry = self.entries[linear]
        values, scale = unpack(linear, entry, self.tensors(linear))
        return values, scale, entry.kind

    def head_ids(self) -> Tensor | None:
        if HEAD_IDS not in self._shards.files:
            return None
        ids = self._shards.tensor(HEAD_IDS)
        if (
            ids.dtype != torch.int32
            or ids.dim() != 1
            or not len(ids)
            or int(ids[0]) < 0
            or not bool((ids[1:] > ids[:-1]).all())
        ):
            raise UserError(f"packed folder {self.folder} has head ids that do not ascend: pack the checkpoint again.")
        return ids.long()


def is_packed(folder: Path) -> bool:
    return (folder / HEADER).is_file()


def pattern_of(folder: Path) -> str:
    """The pattern of most of a packed folder's linears: dense, unstructured or N:M."""
    kinds_of = Counter(entry.kind for name, entry in read_header(folder).items() if name.endswith("_proj"))
    kind = kinds_of.most_common(1)[0][0] if kinds_of else "dense"
    return "unstructured" if kind == "bitmask" else kind


def weights_of(folder: Path) -> PackedWeights | PlainWeights:
    """The weights in `folder`; UserError where they cannot be read."""
    return PackedWeights(folder) if is_packed(folder) else PlainWeights(folder)


def read_header(folder: Path) -> dict[str, Entry]:
    """The packed matrices of `folder` by the name of their linear; UserError for a header that is not one."""
    file = folder / HEADER
    raw = read_object(file, "pack the checkpoint again")
    if raw.get("format") != FORMAT or not isinstance(raw.get("linears"), dict):
        raise UserError(f"packed header {file} is not a {FORMAT} one: pack the checkpoint again.")
    if raw.get("version") != VERSION:
        raise UserError(
            f"packed header {file} is of version {str(raw.get('version'))[:40]}, and this reads {VERSION}: pack the "
            "checkpoint again."
        )
    return {name: Entry.of(name, entry) for name, entry in raw["linears"].items()}
