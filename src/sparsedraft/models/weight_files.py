"""The safetensors files of a checkpoint, and what they store as arrays of bits. No torch is needed."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, StrictStr
from safetensors import safe_open

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_as

INDEX = "model.safetensors.index.json"
OTHERS = ("adapter_", "quantization.")  # safetensors that are no weights of the model
BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


class Index(BaseModel):
    """What an index of shards must hold."""

    weight_map: dict[str, StrictStr]  # the file of each tensor


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, checked to be there; UserError where one is missing."""
    index = folder / INDEX
    if (folder / "model.safetensors").is_file():  # transformers' order
        files = [folder / "model.safetensors"]
    elif index.is_file():
        names = set(read_as(index, Index).weight_map.values())
        files = sorted(folder / Path(name).name for name in names)  # a shard lies beside its index, nowhere else
    else:
        files = sorted(f for f in folder.glob("*.safetensors") if not f.name.startswith(OTHERS))
    if not files:
        raise UserError(
            f"model {folder} holds no .safetensors file: only safetensors are loaded (pickles can run code)."
        )
    for file in files:
        if not file.is_file():
            raise UserError(f"model {folder} lacks its shard {file.name}: copy or download it again.")
    return files


BITS = {"F64": np.uint64, "F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}  # the types whose zeros are counted


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of floating-point numbers in a safetensors file."""

    file: Path
    type: str  # as safetensors calls it, such as "BF16"
    shape: tuple[int, ...]
    start: int  # byte in the file

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def kept(self) -> NDArray[np.bool_]:
        """Which of its numbers are not zero, in its shape: those with a bit other than that of the sign."""
        if not self.size:
            return np.zeros(self.shape, bool)
        raw = np.memmap(self.file, np.uint8, "r", self.start, (self.size * BYTES[self.type],))
        return (np.asarray(raw).view(BITS[self.type]) << 1 != 0).reshape(self.shape)


def stored_tensors(folder: Path) -> dict[str, StoredTensor] | None:
    """The tensors of a checkpoint by their names; None where one is stored twice, or is not of a type in BITS.

    Raises UserError where a file is missing, and SafetensorError, OSError or ValueError where one is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for name, tensor in _tensors_of(file):
            if name in tensors or tensor.type not in BITS:
                return None
            tensors[name] = tensor
    return tensors


def _tensors_of(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    with safe_open(file, "np"):  # checks the header against the file's size
        pass
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            start = 8 + length + entry["data_offsets"][0]
            yield name, StoredTensor(file, entry["dtype"], tuple(entry["shape"]), start)
