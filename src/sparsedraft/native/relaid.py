"""Packed matrices as this CPU reads them, kept in a file, so that a model is loaded at once.

The packed folder itself holds nothing of a machine. The file lies in the folder "native" of the user's cache (see
sources.cache_folder), one for each packed folder, is made anew when the folder or the layouts have changed, and is
checked as a whole before it is used; each matrix in it must be the one that the packed folder's header and scales
describe. $SPARSEDRAFT_NATIVE_CACHE says how: "copy" (the default) reads it into pages of
2 MB, where a model larger than the CPU's cache decodes up to a quarter faster (docs/LOG.md); "map" maps it, so that it
lies in memory once for all processes; with "off" nothing is kept.
"""

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.base.sidefiles import read_as
from sparsedraft.models.shards import weight_files
from sparsedraft.models.sources import cache_folder
from sparsedraft.native import kinds
from sparsedraft.native.extension import extension
from sparsedraft.native.packed import Entry

VERSION = 2  # of the index and the layouts of csrc/relay.cpp: another number makes every file anew
SMALLEST = 16 << 20  # bytes of a model that is worth a file
LINE = 64  # bytes of a cache line, on which every stream begins
SCRATCH, LOCK = ".new-", ".lock"  # a folder that is being filled, and the file in it that its process holds locked
ABANDONED = 3600.0  # seconds after which such a folder without a lock is nobody's


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


Size = Annotated[int, Field(ge=0, lt=1 << 62)]
Row = Annotated[int, Field(ge=-1, lt=1 << 31)]


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Parts(_Schema):
    """What the extension's `parts_of` says of a matrix beside its stream."""

    rows: Size
    columns: Size
    layout: str
    values: str
    n: Annotated[int, Field(ge=0, le=8)]
    tiles: list[Size]
    order: list[Row]
    scale: list[float]


class Kept(_Schema):
    """A matrix, where its stream lies in the file, and how many of its weights are not zero."""

    parts: Parts
    begin: Size
    end: Size
    nonzero: Size

    def fits(self, entry: Entry, scale: Tensor | None) -> bool:
        """Whether this is how a matrix of this `entry` and `scale` (float32 [rows], of int8) is laid out here."""
        parts, size = self.parts, entry.rows * entry.columns
        if (parts.rows, parts.columns) != (entry.rows, entry.columns) or self.nonzero > size:
            return False
        layout, n, runs = kinds.laid_out(entry, self.nonzero / size)
        if (parts.layout, parts.n, parts.values) != (layout, n, runs.rsplit(" ", 1)[1]):
            return False
        if scale is None:
            return not parts.scale
        wanted = np.append(scale.float().numpy(), np.float32(0))  # the last is that of lanes without a row
        lanes = np.asarray(parts.order or range(len(parts.scale)), np.int64)
        if len(lanes) != len(parts.scale) or wanted.shape != (entry.rows + 1,):
            return False
        lanes = np.where((lanes < 0) | (lanes > entry.rows), entry.rows, lanes)
        return np.array_equal(wanted[lanes].astype(np.float64), np.asarray(parts.scale, np.float64))


class Index(_Schema):
    """What lies beside the streams. `sha256` is that of the streams and of `matrices`."""

    state: list[Any]
    sha256: str
    matrices: dict[str, Kept]


def _text(matrices: dict[str, Kept]) -> bytes:
    return json.dumps({name: kept.model_dump() for name, kept in matrices.items()}).encode()


class Relaid:
    """The matrices kept at `place`, or what is to be kept there."""

    def __init__(self, folder: Path, size: int) -> None:
        """`size`: bytes of the packed folder's tensors."""
        self.at = place(folder) if size >= SMALLEST else None
        self.state: list[Any] = state(folder) if self.at else []
        self._kept: dict[str, Kept] = {}
        self._bytes: np.ndarray | None = None
        self._all: dict[str, tuple[Any, int]] = {}  # of each matrix that was asked for: it, and its weights not zero
        self._new = False  # whether one of them was not kept
        if self.at:
            _sweep(self.at.parent)
            if self.at.is_dir():
                self._read(self.at)

    def _read(self, at: Path) -> None:
        try:
            index = read_as(at / "index.json", Index)
            if index.state != self.state:
                return
            streams = _mapped(at / "streams") if how() == "map" else _copied(at / "streams")
        except (UserError, OSError, ValueError):  # made anew
            return
        digest = hashlib.sha256(streams.data)
        digest.update(_text(index.matrices))
        if digest.hexdigest() == index.sha256:
            self._bytes, self._kept = streams, index.matrices

    def matrix(self, name: str, entry: Entry, scale: Tensor | None) -> tuple[Any, str, int] | None:
        """(the matrix of this `entry` and `scale`, how it runs, its weights that are not zero) where it is kept."""
        kept = self._kept.get(name)
        if self._bytes is None or kept is None or not kept.fits(entry, scale):
            return None
        stream = np.asarray(self._bytes)[kept.begin : kept.end]
        try:
            matrix = extension().matrix_of(kept.parts.model_dump(), stream)
        except ValueError:  # damaged before it was signed
            return None
        self._all[name] = matrix, kept.nonzero
        return matrix, kinds.laid_out(entry, kept.nonzero / (entry.rows * entry.columns))[2], kept.nonzero

    def add(self, name: str, matrix: Any, nonzero: int) -> None:
        """A matrix that was not kept, and that `write` keeps."""
        if self.at is not None:
            self._all[name] = matrix, nonzero
            self._new = True

    def write(self) -> None:
        """Keep all that were asked for. Where that cannot be, nothing is lost but the time of the next loading."""
        if self.at is None or not self._new:
            return
        try:
            with _scratch(self.at.parent) as work:
                self._write(work)
                (work / LOCK).unlink()
                shutil.rmtree(self.at, ignore_errors=True)
                work.rename(self.at)
        except OSError as error:
            console.print(f"the matrices are not kept in {self.at.parent} ({error})", style="dim", soft_wrap=True)

    def _write(self, work: Path) -> None:
        matrices, begin, digest = {}, 0, hashlib.sha256()
        with open(work / "streams", "wb") as file:
            for name, (matrix, nonzero) in self._all.items():
                found = extension().parts_of(matrix)
                stream = found.pop("stream")
                padding = bytes(-len(stream) % LINE)
                for piece in (stream, padding):
                    file.write(piece)
                    digest.update(piece)
                end = begin + len(stream)
                matrices[name] = Kept(parts=Parts(**found), begin=begin, end=end, nonzero=nonzero)
                begin = end + len(padding)
        digest.update(_text(matrices))
        index = Index(state=self.state, sha256=digest.hexdigest(), matrices=matrices)
        (work / "index.json").write_text(index.model_dump_json(), encoding="utf-8")


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, to be filled and renamed; what is still there at the end is removed, even by Ctrl-C."""
    parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=parent, prefix=SCRATCH))
    try:
        with open(work / LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when this process ends, even by SIGKILL
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what processes that were killed had begun in `parent`; a living one holds a lock on its own."""
    for left in parent.glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):  # another's, or just gone
            if (left / LOCK).exists():
                with open(left / LOCK) as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
            elif time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left)
