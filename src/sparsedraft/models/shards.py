"""A checkpoint's safetensors as one set of named tensors, read one at a time and written in shards of bounded size.

Reading maps a file and touches only the tensor that is asked for; writing streams from mapped files. So at most one
shard is in memory.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.models.config.drafting import DRAFTING
from sparsedraft.models.config.wrapper import text_names
from sparsedraft.models.weight_files import BYTES, INDEX, weight_files

SHARD = 1 << 30  # bytes in an output file; a shard is mapped whole while it is written
# true of one checkpoint: never copied
OWN_FILES = {INDEX, "sparsity.json", DRAFTING, "result.json", "provenance.json"}
PICTURES = {"preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"}  # of a wrapper
SIDE_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*")  # what a checkpoint has beside its weights


class Shards:
    """The tensors of the checkpoint in `folder`, by their names in the model. Of a wrapper, those of its text model.

    Raises UserError where files are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Path] = {}  # by tensor name
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}  # as safetensors calls them, such as "BF16"
        for file in weight_files(folder):
            try:
                with safe_open(file, "pt") as opened:  # reads the header and checks it against the file's size
                    for name in opened.keys():  # noqa: SIM118  (not a dict)
                        if name in self.files:
                            raise UserError(
                                f"model {folder} stores {name} twice, in {self.files[name].name} and {file.name}: "
                                "take one of the files away."
                            )
                        part = opened.get_slice(name)
                        self.files[name], self.shapes[name] = file, tuple(part.get_shape())
                        self.types[name] = part.get_dtype()
            except (SafetensorError, OSError, ValueError) as error:
                raise UserError(
                    f"model file {file} is damaged or cut short ({error}): copy or download it again."
                ) from None
        self._stored = text_names(self.files)  # what the files call each tensor
        for table in (self.files, self.shapes, self.types):
            renamed = {name: table[stored] for name, stored in self._stored.items()}
            table.clear()
            table.update(renamed)  # type: ignore[arg-type]
        if not self.files:
            raise UserError(f"model {folder} holds no tensors: copy or download it again.")

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` as stored; its memory is the mapped file's, unless it is not aligned there."""
        return self.several([name])[name]

    def several(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The tensors `names` as `tensor` gives them, each file opened once."""
        tensors = {}
        for file in {self.files[name] for name in names}:
            with safe_open(file, "pt") as opened:
                for name in names:
                    if self.files[name] == file:
                        tensor = opened.get_tensor(self._stored[name])
                        tensors[name] = tensor if tensor.data_ptr() % tensor.element_size() == 0 else tensor.clone()
        return tensors

    def pieces(self, name: str, rows: int = 4096) -> Iterator[Tensor]:
        """The tensor `name` as stored, at most `rows` rows in memory at a time."""
        with safe_open(self.files[name], "pt") as opened:
            shape = self.shapes[name]
            if not shape:
                yield opened.get_tensor(self._stored[name])
                return
            part = opened.get_slice(self._stored[name])
            for start in range(0, shape[0], rows):
                yield part[start : start + rows]

    def finite(self, name: str) -> bool:
        """Whether no number of the tensor is NaN or infinite (8 bits: not looked at)."""
        if self.types[name] not in ("F64", "F32", "F16", "BF16"):
            return True
        return all(bool(torch.isfinite(piece).all()) for piece in self.pieces(name))

    def converted(self, name: str, dtype: torch.dtype) -> tuple[Tensor, bool]:
        """(a copy of the tensor in `dtype`, whether all its numbers are finite in `dtype`)."""
        tensor, finite, start = torch.empty(self.shapes[name], dtype=dtype), True, 0
        for piece in self.pieces(name):  # a check of the whole tensor would need more memory than the tensor
            part = tensor[start : start + len(piece)] if piece.dim() else tensor
            part.copy_(piece)
            finite = finite and bool(torch.isfinite(part).all())
            start += len(part) if piece.dim() else 0
        return tensor, finite

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers."""
        if self.shapes[one] != self.shapes[other]:
            return False
        pairs = zip(self.pieces(one), self.pieces(other), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    def bytes(self, name: str) -> int:
        """Size of the tensor on disk."""
        return BYTES.get(self.types[name], 1) * torch.Size(self.shapes[name]).numel()

    def find(self, name: str, prefix: str) -> str | None:
        """The stored name of the model's tensor `name`: some checkpoints lack the base model's `prefix`, or add it."""
        candidates = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
        return next((c for c in candidates if c in self.files), None)


def write(folder: Path, tensors: Mapping[str, tuple[Shards, str]], limit: int = SHARD) -> None:
    """Write `tensors` (name: where it lies, and its name there) as safetensors files of at most `limit` bytes each.

    A tensor above the limit gets a separate file. Files and index are named as transformers names them.
    """
    groups: list[list[str]] = [[]]
    size = 0
    for name, (source, stored) in tensors.items():
        more = source.bytes(stored)
        if groups[-1] and size + more > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += more
    names = (
        ["model.safetensors"]
        if len(groups) == 1
        else [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    )
    for file, group in zip(names, groups, strict=True):
        contents = {name: source.tensor(stored) for name in group for source, stored in [tensors[name]]}
        save_file(contents, folder / file, metadata={"format": "pt"})
        del contents  # and with it the mappings
    if len(groups) > 1:
        total = sum(source.bytes(stored) for source, stored in tensors.values())
        where = {name: file for file, group in zip(names, groups, strict=True) for name in group}
        index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def side_files(source: Path) -> list[Path]:
    """Config, tokenizer and other files beside the weights in the checkpoint `source`.

    UserError for a symbolic link that leads out of the checkpoint: a copy would publish a foreign file. Links to the
    blobs of a hub cache are allowed, since downloads consist of them.
    """
    root = source.resolve()
    files = []
    for file in sorted({file for pattern in SIDE_FILES for file in source.glob(pattern)}):
        if file.name in OWN_FILES | PICTURES or file.name.startswith("."):
            continue
        real = Path(os.path.realpath(file))  # unlike resolve(), it does not raise for a link to itself
        if root not in real.parents and not _is_blob(real):
            raise UserError(f"model file {file} is a link to {real}, outside the checkpoint: copy the file.")
        if file.is_symlink() and not file.exists():
            raise UserError(f"model file {file} is a link to {real}, which is not there: copy or download it again.")
        if file.is_file():
            files.append(file)
    return files


def _is_blob(file: Path) -> bool:
    """Whether the file is a blob of a hub cache: models--OWNER--NAME/blobs/HASH."""
    return file.parent.name == "blobs" and file.parent.parent.name.startswith("models--")


def copy_side_files(source: Path, folder: Path) -> None:
    """Copy the `side_files`, byte for byte."""
    for file in side_files(source):
        (folder / file.name).write_bytes(file.read_bytes())
