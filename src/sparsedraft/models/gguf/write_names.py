"""A model's tensors by llama.cpp's names, and the order in which llama.cpp has the rows of queries and keys."""

import gguf
import torch
from torch import Tensor
from transformers import PretrainedConfig

from sparsedraft.base.errors import UserError
from sparsedraft.models.gguf.write_settings import ARCHITECTURES

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
PAIRED = {"llama"}  # a pair that turns lies side by side, and not half a head apart as in transformers


class Names:
    """llama.cpp's names for the model of `config`."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config, self.arch = config, ARCHITECTURES[config.model_type]
        known = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == self.arch)
        self.map = gguf.get_tensor_name_map(known, config.num_hidden_layers)

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
        heads = self.config.num_attention_heads if part == "q_proj" else self.config.num_key_value_heads
        return ids.view(heads, 2, -1).transpose(1, 2).flatten()
