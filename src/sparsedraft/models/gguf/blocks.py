"""The matrices of a GGUF file as the file has them: the bytes of their blocks or floats, row by row."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.models.gguf.header import Tensor as Entry
from sparsedraft.models.gguf.parts import read_parts

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # whose linears are one tensor each


@dataclass(frozen=True)
class Blocks:
    """A matrix of a GGUF file: `kind`, ggml's name such as q4_k or f16; `values` uint8 [rows, bytes]; its columns."""

    kind: str
    values: Tensor
    columns: int


class BlockFile:
    """The matrices of the GGUF file `path` (any part of a split one) by the names of a checkpoint.

    UserError for a file that is not whole, or of another architecture than ARCHITECTURES.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.parts = path, read_parts(path)
        self.architecture = self.parts[0].architecture
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"model {path} is of the architecture {self.architecture}: weights stay as they are for "
                f"{', '.join(ARCHITECTURES)}; give --weights int8 or int4."
            )
        from sparsedraft.models.gguf.tensor_names import Names  # needs the extra

        header = self.parts[0]
        heads = header.own("attention.head_count")
        kv_heads = header.own("attention.head_count_kv", heads)
        self.names = Names(self.architecture, header.own("block_count"), heads, kv_heads)
        self.places = {tensor.name: (part, tensor) for part in self.parts for tensor in part.tensors}

    def kind(self, linear: str) -> str | None:
        """ggml's name of the type of the matrix that a checkpoint calls `linear`; None where the file has none."""
        found = self.places.get(self.names.of(f"{linear}.weight"))
        return None if found is None else _kind(found[1])

    def of(self, linear: str) -> Blocks | None:
        """The matrix that a checkpoint calls `linear`; None where the file has none."""
        name = self.names.of(f"{linear}.weight")
        if name not in self.places:
            return None
        part, entry = self.places[name]
        rows, columns = entry.shape
        raw = np.fromfile(part.path, np.uint8, entry.size, offset=entry.start)
        if len(raw) < entry.size:
            raise UserError(f"model {part.path}: it became shorter while it was read; copy it again.")
        values = torch.from_numpy(raw.reshape(rows, -1))
        order = self.names.order(f"{linear}.weight", rows)  # from the checkpoint's rows to the file's
        return Blocks(_kind(entry), values[order.argsort()], columns)


def _kind(entry: Entry) -> str:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(entry.kind).name.lower()
