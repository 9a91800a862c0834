"""The header of a GGUF file: its keys, and where its tensors lie. Each count is checked before it is used."""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sparsedraft.base.errors import UserError

VERSIONS = (2, 3)  # 1 counted in 32 bits; no such file is left
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # by type id
STRING, ARRAY = 8, 9
MOST_DIMENSIONS = 4  # of a tensor, as in ggml
SMALLEST_KEY, SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8  # bytes of an entry with an empty name
LARGEST_ALIGNMENT = 1 << 20
LONGEST_NAME = 256  # characters


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file. `shape` is as torch has it, the row's length last."""

    name: str
    shape: tuple[int, ...]
    kind: int  # ggml's type id
    start: int  # bytes, from the beginning of the file
    size: int  # bytes


@dataclass(frozen=True)
class Header:
    """A file's keys and tensors. Of an array of strings only the count is kept, as `Strings`."""

    path: Path
    keys: dict[str, Any]
    tensors: tuple[Tensor, ...]
    version: int
    alignment: int
    count_of_keys: int
    keys_end: int  # the keys lie in bytes 24 to here

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors' shapes by their names."""
        return {tensor.name: tensor.shape for tensor in self.tensors}

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, "" where there is none."""
        name = self.keys.get("general.architecture")
        return name if isinstance(name, str) else ""

    def own(self, name: str, default: Any = None) -> Any:
        """The architecture's own key `name`, such as "context_length"; `default` where it is not there."""
        return self.keys.get(f"{self.architecture}.{name}", default)

    def floats(self, name: str) -> NDArray[np.float32] | None:
        """The values of the float32 tensor `name`, flat, or None. UserError if it is of another type."""
        tensor = next((t for t in self.tensors if t.name == name), None)
        if tensor is None:
            return None
        if tensor.kind != 0:
            raise UserError(f"model {self.path}: its tensor {name} is not float32; take the original checkpoint.")
        return np.fromfile(self.path, np.float32, prod(tensor.shape), offset=tensor.start)


def shown(value: Any) -> str:
    """A value from the file for a message: one line of at most 80 characters or so."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


class Strings(int):
    """Stands for an array of strings, of which only the count is kept."""


def read_header(path: Path) -> Header:
    """The header of the GGUF file `path`. UserError for one that is damaged, or claims more than the file can hold."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).header()
    except (OSError, ValueError) as error:  # mmap: an empty file
        raise UserError(f"model {path}: cannot be read ({error}).") from None


class _Reader:
    """Reads forward through a file, and never beyond its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.end = path, data, 0, len(data)

    def refuse(self, what: str) -> NoReturn:
        raise UserError(f"model {self.path}: not a whole GGUF file ({what}); copy or download it again.")

    def take(self, kind: str) -> Any:
        """One number of a `struct` kind, little-endian."""
        size = struct.calcsize("<" + kind)
        self.need(size, "a number")
        (number,) = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += size
        return number

    def need(self, size: int, what: str) -> None:
        if size > self.end - self.at:
            self.refuse(f"{what} at byte {self.at:,} needs {size:,} bytes of a file of {self.end:,}")

    def text(self, what: str) -> str:
        length = self.take("Q")
        self.need(length, what)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.refuse(f"{what} is not UTF-8")

    def name(self, what: str) -> str:
        found = self.text(what)
        if len(found) > LONGEST_NAME or not found.isprintable():
            self.refuse(f"{what} is {shown(found)}")
        return found

    def value(self, key: str) -> Any:
        kind = self.take("I")
        if kind in SCALARS:
            return self.take(SCALARS[kind])
        if kind == STRING:
            return self.text(f"the value of {key}")
        if kind != ARRAY:
            self.refuse(f"{key} is of type {kind}, which there is not")
        kind, count = self.take("I"), self.take("Q")
        if kind == STRING:
            self.need(8 * count, f"{key}, which claims {count:,} strings,")
            for _ in range(count):
                length = self.take("Q")
                self.need(length, f"a string of {key}")
                self.at += length
            return Strings(count)
        if kind not in SCALARS:
            self.refuse(f"{key} is an array of type {kind}, which there is not")
        self.need(struct.calcsize("<" + SCALARS[kind]) * count, f"{key}, which claims {count:,} numbers,")
        numbers = list(struct.unpack_from(f"<{count}{SCALARS[kind]}", self.data, self.at))
        self.at += struct.calcsize(f"<{count}{SCALARS[kind]}")
        return numbers

    def header(self) -> Header:
        if self.data[:4] != b"GGUF":
            self.refuse("it does not begin with GGUF")
        self.at = 4
        if (version := self.take("I")) not in VERSIONS:
            self.refuse(f"it is of version {version}; {' and '.join(map(str, VERSIONS))} can be read")
        tensors, count = self.take("Q"), self.take("Q")
        self.need(count * SMALLEST_KEY + tensors * SMALLEST_TENSOR, f"a header of {count:,} keys, {tensors:,} tensors")
        keys: dict[str, Any] = {}
        for _ in range(count):
            if (key := self.name("a key")) in keys:
                self.refuse(f"the key {key} is there twice")
            keys[key] = self.value(key)
        keys_end = self.at
        alignment = keys.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
            self.refuse(f"general.alignment is {alignment}, not a power of two up to {LARGEST_ALIGNMENT:,}")
        found = tuple(self.tensors(tensors, alignment))
        if len({tensor.name for tensor in found}) < len(found):
            self.refuse("a tensor is there twice")
        return Header(self.path, keys, found, version, alignment, count, keys_end)

    def tensors(self, count: int, alignment: int) -> Iterator[Tensor]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        entries = []
        for _ in range(count):
            name, dimensions = self.name("a tensor's name"), self.take("I")
            if dimensions > MOST_DIMENSIONS:
                self.refuse(f"{name} has {dimensions:,} dimensions")
            shape = tuple(reversed([self.take("Q") for _ in range(dimensions)]))
            entries.append((name, shape, self.take("I"), self.take("Q")))
        data = -(-self.at // alignment) * alignment
        sizes = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
        for name, shape, kind, offset in entries:
            if kind not in sizes:
                known = ", ".join(entry.name for entry in GGMLQuantizationType)
                raise UserError(
                    f"model {self.path}: {name} is of ggml type {kind}, which this version of the gguf package does "
                    f"not know (it knows {known}); take a file in one of these."
                )
            block, width = sizes[kind]
            if (shape[-1] if shape else 1) % block:
                self.refuse(f"the rows of {name}, {shape}, are no multiple of {block}")
            size = prod(shape) // block * width
            if data + offset + size > self.end:
                self.refuse(f"{name}, {shape}, ends at byte {data + offset + size:,} of a file of {self.end:,}")
            yield Tensor(name, shape, kind, data + offset, size)
