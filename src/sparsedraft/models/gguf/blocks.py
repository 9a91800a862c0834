"""The matrices of a GGUF file as the file has them: the bytes of their blocks or floats, row by row."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.models.gguf.header import Header
from sparsedraft.models.gguf.header import Tensor as Entry
from sparsedraft.models.gguf.parts import read_parts

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
WHOLE = {"embed_tokens": "token_embd", "lm_head": "output"}
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # whose linears are one tensor each, by these names
TURNED = {"llama": {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}}  # see `_in_halves`


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
        self.places = {tensor.name: (part, tensor) for part in self.parts for tensor in part.tensors}

    def kind(self, linear: str) -> str | None:
        """ggml's name of the type of the matrix that a checkpoint calls `linear`; None where the file has none."""
        found = self.places.get(_name(linear))
        return None if found is None else _kind(found[1])

    def of(self, linear: str) -> Blocks | None:
        """The matrix that a checkpoint calls `linear`; None where the file has none."""
        name = _name(linear)
        if name not in self.places:
            return None
        part, entry = self.places[name]
        rows, columns = entry.shape
        raw = np.fromfile(part.path, np.uint8, entry.size, offset=entry.start)
        if len(raw) < entry.size:
            raise UserError(f"model {part.path}: it became shorter while it was read; copy it again.")
        values = torch.from_numpy(raw.reshape(rows, -1))
        heads = TURNED.get(self.architecture, {}).get(name.split(".")[-2])
        return Blocks(_kind(entry), values if heads is None else _in_halves(values, self._heads(heads)), columns)

    def _heads(self, key: str) -> int:
        header: Header = self.parts[0]
        return int(header.own(key, header.own("attention.head_count")))


def _name(linear: str) -> str:
    """The name in a GGUF file of what a checkpoint calls `linear`; empty for what it does not hold."""
    *before, last = linear.split(".")
    if last in WHOLE:
        return f"{WHOLE[last]}.weight"
    if len(before) < 2 or not before[-2].isdigit():
        return ""
    return f"blk.{before[-2]}.{NAMES.get(f'{before[-1]}.{last}', '')}.weight"


def _kind(entry: Entry) -> str:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(entry.kind).name.lower()


def _in_halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of a query or key as a checkpoint has them.

    A rotation turns dimension i of a head with i + half in a checkpoint, and 2 i with 2 i + 1 in llama.cpp's "llama".
    """
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()
