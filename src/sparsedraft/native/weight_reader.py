"""The weights of a checkpoint, packed or plain, read one tensor at a time."""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from sparsedraft.base.errors import Unsupported
from sparsedraft.models import claims
from sparsedraft.models.shards import Shards
from sparsedraft.native.packed_folder import PackedReader, is_packed
from sparsedraft.native.packed_format import MatrixEntry, kind_of
from sparsedraft.native.stored_matrix import FLOATS, StoredMatrix


class WeightReader(Protocol):
    """What a native model is built from."""

    names: frozenset[str]  # of every tensor, as the plain checkpoint calls them
    bytes: int  # of all tensors, as stored

    def vector(self, name: str) -> Tensor:
        """A norm's weight or a bias, float32."""
        ...

    def matrix(self, name: str) -> tuple[StoredMatrix, str]:
        """(what is stored, the packed kind) of a linear or an embedding."""
        ...

    def table(self, name: str) -> tuple[MatrixEntry, dict[str, Tensor]]:
        """An embedding as it is stored: mapped, no page of it in memory yet, and not checked."""
        ...

    def head_ids(self) -> Tensor | None:
        """The tokens of a trimmed head, ascending; None for a whole head."""
        ...

    def head_base(self) -> Tensor | None:
        """The frequent tokens of a head that follows the text, ascending; None for another."""
        ...


class PlainReader:
    """Reads a Hugging Face checkpoint. A linear's kind follows from its zeros where the checkpoint claims a pattern."""

    def __init__(self, folder: Path) -> None:
        self._shards = Shards(folder)
        self.names = frozenset(self._shards.files)
        self.bytes = sum(map(self._shards.bytes, self.names))
        self._claim = claims.claim_of(folder) or {"linears": {}}
        self._folder = folder

    def vector(self, name: str) -> Tensor:
        return self._shards.tensor(name).float()

    def matrix(self, name: str) -> tuple[StoredMatrix, str]:
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
        return StoredMatrix(weight), kind_of(weight) if linear in self._claim["linears"] else "dense"

    def table(self, name: str) -> tuple[MatrixEntry, dict[str, Tensor]]:
        stored, kind = self.matrix(name)
        return MatrixEntry.describe(stored, kind), {"values": stored.values}

    def head_ids(self) -> Tensor | None:
        return None

    def head_base(self) -> Tensor | None:
        return None


def reader_of(folder: Path) -> PackedReader | PlainReader:
    """What reads the weights in `folder`; UserError where they cannot be read."""
    return PackedReader(folder) if is_packed(folder) else PlainReader(folder)
