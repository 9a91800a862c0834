"""A model's tensors by llama.cpp's names, and the order in which llama.cpp has the rows of queries and keys."""

import gguf
import torch
from torch import Tensor

from sparsedraft.base.errors import UserError

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
PAIRED = {"llama"}  # a pair that turns lies side by side, and not half a head apart as in transformers


class Names:
    """llama.cpp's names for a model of its architecture `arch`, with so many layers, heads and heads of keys."""

    def __init__(self, arch: str, layers: int, heads: int, kv_heads: int) -> None:
        self.arch, self.heads, self.kv_heads = arch, heads, kv_heads
        known = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
        self.map = gguf.get_tensor_name_map(known, layers)

    def of(self, name: str) -> str:
        """llama.cpp's name of the tensor that transformers calls `name`; UserError where it has none."""
        found = self.map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(f"llama.cpp's {self.arch} has no place for the tensor {name}: it cannot be exported.")
        return found

    def order(self, name: str, rows: int) -> Tensor:
        """Which of transformers' rows of the tensor `name` stand one after the other in the file: int64 [rows]."""
        ids = torch.arange(rows)
        part = name.rsplit(".", 2)[-2]
        if self.arch not in PAIRED or part not in ("q_proj", "k_proj"):
            return ids
        heads = self.heads if part == "q_proj" else self.kv_heads
        return ids.view(heads, 2, -1).transpose(1, 2).flatten()
