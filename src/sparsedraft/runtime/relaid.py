"""Packed matrices as this CPU reads them, kept in a file, so that a model is loaded at once.

The packed folder itself holds nothing of a machine. The file lies in the folder "native" of the user's cache (see
sources.cache_folder), one for each packed folder, is made anew when the folder or the layouts have changed, and is
checked as a whole before it is used. $SPARSEDRAFT_NATIVE_CACHE says how: "copy" (the default) reads it into pages of
2 MB, where a model larger than the CPU's cache decodes up to a quarter faster (docs/LOG.md); "map" maps it, so that it
lies in memory once for all processes; with "off" nothing is kept.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sparsedraft.console import console
from sparsedraft.errors import UserError
from sparsedraft.runtime import kinds
from sparsedraft.runtime.native import extension
from sparsedraft.shards import weight_files
from sparsedraft.sources import cache_folder

VERSION = 1  # of the layouts of csrc/relay.cpp: another number makes every file anew
SMALLEST = 16 << 20  # bytes of a model that is worth a file
LINE = 64  # bytes of a cache line, on which every stream begins


def how() -> str:
    """$SPARSEDRAFT_NATIVE_CACHE: copy, map or off; UserError for anything else."""
    named = os.environ.get("SPARSEDRAFT_NATIVE_CACHE", "copy")
    if named not in ("copy", "map", "off"):
        raise UserError(f"SPARSEDRAFT_NATIVE_CACHE={named} is not known: set it to copy, map or off.")
    return named


def place(folder: Path) -> Path | None:
    """Where the matrices of the packed `folder` are kept; None: nowhere."""
    if how() == "off":
        return None
    return cache_folder() / "native" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]


def state(folder: Path) -> list[Any]:
    """What the kept file was made from: changes when a file of the packed folder does, or the CPU's layouts."""
    files = [folder / "packed.json", folder / "config.json", *weight_files(folder)]
    found = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return json.loads(json.dumps([VERSION, kinds.window_up_to(), found]))


def _mapped(file: Path) -> np.ndarray:
    return np.memmap(file, dtype=np.uint8, mode="r")


def _copied(file: Path) -> np.ndarray:
    """The bytes of `file`, in pages of 2 MB where the system has them: reading through small ones waits for the TLB."""
    size = file.stat().st_size
    pages = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    with open(file, "rb", buffering=0) as source:
        view, at = memoryview(pages), 0
        while at < size and (count := source.readinto(view[at:])):
            at += count
    return np.frombuffer(pages, np.uint8)


class Relaid:
    """The matrices kept at `place`, or what is to be kept there."""

    def __init__(self, folder: Path, size: int) -> None:
        """`size`: bytes of the packed folder's tensors."""
        self.at = place(folder) if size >= SMALLEST else None
        self.state: list[Any] = state(folder) if self.at else []
        self.parts: dict[str, Any] = {}  # of each matrix: what `matrix_of` takes, how it runs, how many are not zero
        self._bytes: np.ndarray | None = None
        self._new: dict[str, Any] = {}
        if self.at and self.at.is_dir():
            self._read(self.at)

    def _read(self, at: Path) -> None:
        try:
            index = json.loads((at / "index.json").read_text(encoding="utf-8"))
            if index["state"] != self.state:
                return
            streams = _mapped(at / "streams") if how() == "map" else _copied(at / "streams")
            digest = hashlib.sha256(streams.data)
            digest.update(json.dumps(index["parts"]).encode())
            if digest.hexdigest() != index["sha256"]:
                return
            self._bytes, self.parts = streams, index["parts"]
        except (OSError, ValueError, KeyError, TypeError):  # made anew
            return

    def matrix(self, name: str) -> tuple[Any, str, int, int] | None:
        """(the matrix, how it runs, its weights that are not zero, all of them) where it is kept."""
        if self._bytes is None or name not in self.parts:
            return None
        part = self.parts[name]
        stream = np.asarray(self._bytes)[part["begin"] : part["end"]]
        return extension().matrix_of(part["parts"], stream), part["runs"], part["nonzero"], part["size"]

    def add(self, name: str, matrix: Any, runs: str, nonzero: int, size: int) -> None:
        """Another matrix that `write` keeps."""
        if self.at is not None:
            self._new[name] = (matrix, {"runs": runs, "nonzero": nonzero, "size": size})

    def write(self) -> None:
        """Keep what was added. Where that is not possible, nothing is lost but the time of the next loading."""
        if self.at is None or not self._new:
            return
        work = None
        try:
            self.at.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(dir=self.at.parent, prefix=".new-"))
            self._write(work)
            shutil.rmtree(self.at, ignore_errors=True)
            work.rename(self.at)
        except OSError as error:
            console.print(f"the matrices are not kept in {self.at.parent} ({error})", style="dim", soft_wrap=True)
            if work is not None:
                shutil.rmtree(work, ignore_errors=True)

    def _write(self, work: Path) -> None:
        parts, place, digest = {}, 0, hashlib.sha256()
        with open(work / "streams", "wb") as file:
            for name, (matrix, about) in self._new.items():
                found = extension().parts_of(matrix)
                stream = found.pop("stream")
                padding = bytes(-len(stream) % LINE)
                for piece in (stream, padding):
                    file.write(piece)
                    digest.update(piece)
                parts[name] = {**about, "parts": found, "begin": place, "end": place + len(stream)}
                place += len(stream) + len(padding)
        digest.update(json.dumps(parts).encode())
        index = {"state": self.state, "sha256": digest.hexdigest(), "parts": parts}
        (work / "index.json").write_text(json.dumps(index), encoding="utf-8")
