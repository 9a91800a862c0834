"""Writes a GGUF file: its keys first, then one tensor after the other, of which one is in memory at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from numpy.typing import NDArray

from sparsedraft.models.gguf.write_blocks import row_bytes
from sparsedraft.models.gguf.write_tokenizer import TokenizerKeys

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
KEYS = 1 << 16  # bytes, more than the keys other than the tokenizer's take
FILE_TYPES = {
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "bf16": LlamaFileType.MOSTLY_BF16,
}


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: its name there, what transformers calls it, its shape as torch has it, its type."""

    name: str
    source: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    @property
    def bytes(self) -> int:
        return prod(self.shape[:-1]) * row_bytes(self.kind, self.shape[-1])


@dataclass(frozen=True)
class Plan:
    """A whole file before its tensors are read."""

    arch: str
    name: str
    kind: str  # a key of FILE_TYPES
    settings: Mapping[str, Any]
    tokenizer: TokenizerKeys
    tensors: Sequence[Entry]

    @property
    def bytes(self) -> int:
        """About the size of the file, not less."""
        table = sum(len(entry.name) + 64 for entry in self.tensors)
        data = sum(-(-entry.bytes // ALIGNMENT) * ALIGNMENT for entry in self.tensors)
        return KEYS + self.tokenizer.bytes + len(str(self.tokenizer.special.chat_template)) * 4 + table + data


def write_file(path: Path, plan: Plan, data: Callable[[Entry], NDArray[Any]]) -> None:
    """Write the file `path` as planned; `data` gives the bytes of a tensor, uint8 [rows, bytes of a row] or float32."""
    writer = GGUFWriter(path, plan.arch)
    try:
        for entry in plan.tensors:
            writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.bytes, raw_dtype=entry.kind)
        _add_keys(writer, plan)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in plan.tensors:
            writer.write_tensor_data(data(entry))
    finally:
        writer.close()


def _add_keys(writer: GGUFWriter, plan: Plan) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(plan.name)
    total, shared, expert, experts = writer.get_total_parameter_count()
    writer.add_size_label(gguf.size_label(total, shared, expert, experts))
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for key, value in plan.settings.items():
        add[type(value)](key, value)
    writer.add_file_type(FILE_TYPES[plan.kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    plan.tokenizer.add_to(writer)
