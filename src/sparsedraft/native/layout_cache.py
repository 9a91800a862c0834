"""A cache of laid-out matrices, so that a packed model loads without being laid out each time.

A packed folder holds nothing of any machine; this cache holds its matrices as this CPU reads them. It lies in the
folder "native" of the user's cache (see sources.cache_folder), one folder for each packed folder. It is written again
when the packed folder or the layouts have changed, and checked before it is used: its hash as a whole, and each matrix
against the packed folder's header and scales. Caches that are not needed any more make room (see cache_room).

$SPARSEDRAFT_NATIVE_CACHE is the mode: "copy" (the default) reads the cache into pages of 2 MB, where a model larger
than the CPU's cache decodes up to a quarter faster (docs/LOG.md); "map" maps it, so that all processes share its
memory; "off" caches nothing.
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
from sparsedraft.base.jsonfiles import read_as
from sparsedraft.models.sources import cache_folder
from sparsedraft.models.weight_files import weight_files
from sparsedraft.native.cache_room import make_room, note_source, note_use
from sparsedraft.native.extension import extension
from sparsedraft.native.layout_choice import window_up_to
from sparsedraft.native.packed_format import MatrixEntry

VERSION = 5  # of the index and of csrc/layout: a cache of another version is written again
SMALLEST = 16 << 20  # bytes of a model that is worth a cache
LINE = 64  # bytes of a cache line, on which every stream begins
SCRATCH, LOCK = ".new-", ".lock"  # a folder that a process fills, and the file in it that the process locks
ABANDONED = 3600.0  # seconds after which a scratch folder without a lock file may be removed


def mode() -> str:
    """$SPARSEDRAFT_NATIVE_CACHE: copy, map or off; UserError for anything else."""
    named = os.environ.get("SPARSEDRAFT_NATIVE_CACHE", "copy")
    if named not in ("copy", "map", "off"):
        raise UserError(f"SPARSEDRAFT_NATIVE_CACHE={named} is not known: set it to copy, map or off.")
    return named


def location(folder: Path) -> Path | None:
    """The cache of the packed `folder`; None where nothing is cached."""
    if mode() == "off":
        return None
    return cache_folder() / "native" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]


def state(folder: Path) -> list[Any]:
    """What a cache is made from. It changes when a file of the packed folder does, or what decides on layouts."""
    files = [folder / "packed.json", folder / "config.json", *weight_files(folder)]
    stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return json.loads(json.dumps([VERSION, window_up_to(), stats]))


def _mapped(file: Path) -> np.ndarray:
    return np.memmap(file, dtype=np.uint8, mode="r")


def _copied(file: Path) -> np.ndarray:
    """The bytes of `file`, in pages of 2 MB where the system has them: with small pages, reading waits for the TLB."""
    size = file.stat().st_size
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones are small on most systems
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
    """The fields of a laid-out matrix but its stream, as the extension's `parts_of` gives them."""

    rows: Size
    columns: Size
    layout: str
    values: str
    n: Annotated[int, Field(ge=0, le=8)]
    group: Annotated[int, Field(ge=0, le=256)]
    activations: Annotated[int, Field(ge=8, le=16)]
    tiles: list[Size]
    order: list[Row]
    scale: list[float]


class CachedMatrix(_Schema):
    """A laid-out matrix: its fields, where its stream lies in the file, and how many of its weights are not zero."""

    parts: Parts
    begin: Size
    end: Size
    nonzero: Size

    def fits(self, entry: MatrixEntry, scale: Tensor | None) -> bool:
        """Whether this is how a matrix of this `entry` and `scale` (as stored) is laid out here."""
        parts, size = self.parts, entry.rows * entry.columns
        if (parts.rows, parts.columns) != (entry.rows, entry.columns) or self.nonzero > size:
            return False
        layout = entry.layout(self.nonzero / size)
        expected = layout.name, layout.n, layout.values, entry.group, entry.activations
        if (parts.layout, parts.n, parts.values, parts.group, parts.activations) != expected:
            return False
        if scale is None or entry.group:  # the scales of int4 lie in the stream
            return not parts.scale
        return self._fits_scale(entry, scale.float().numpy())

    def _fits_scale(self, entry: MatrixEntry, scale: np.ndarray) -> bool:
        """Whether each lane has the scale of its row, and lanes without a row have 0."""
        if scale.shape != (entry.rows,):
            return False
        parts = self.parts
        rows = np.asarray(parts.order or range(len(parts.scale)), np.int64)  # of each lane
        if len(rows) != len(parts.scale):
            return False
        rows = np.where((rows < 0) | (rows > entry.rows), entry.rows, rows)
        expected = np.append(scale, np.float32(0))[rows]
        return np.array_equal(expected.astype(np.float64), np.asarray(parts.scale, np.float64))


class Index(_Schema):
    """The file beside the streams. `sha256` is that of the streams and of `matrices`."""

    state: list[Any]
    sha256: str
    matrices: dict[str, CachedMatrix]


def _text(matrices: dict[str, CachedMatrix]) -> bytes:
    return json.dumps({name: matrix.model_dump() for name, matrix in matrices.items()}).encode()


class LayoutCache:
    """The cache of one packed folder: matrices that it has, and those that `write` adds."""

    def __init__(self, folder: Path, size: int) -> None:
        """`size`: bytes of the packed folder's tensors."""
        self.folder, self.at = folder, location(folder) if size >= SMALLEST else None
        self.state: list[Any] = state(folder) if self.at else []
        self._cached: dict[str, CachedMatrix] = {}
        self._streams: np.ndarray | None = None
        self._used: dict[str, tuple[Any, int]] = {}  # of each matrix of the model: it, and its number of non-zeros
        self._incomplete = False  # whether one of them was not cached
        if self.at:
            _sweep(self.at.parent)
            if self.at.is_dir():
                self._read(self.at)

    def _read(self, at: Path) -> None:
        try:
            index = read_as(at / "index.json", Index)
            if index.state != self.state:
                return
            streams = _mapped(at / "streams") if mode() == "map" else _copied(at / "streams")
        except (UserError, OSError, ValueError):  # damaged: it is written again
            return
        digest = hashlib.sha256(streams.data)
        digest.update(_text(index.matrices))
        if digest.hexdigest() == index.sha256:
            self._streams, self._cached = streams, index.matrices
            note_use(at)

    def matrix(self, name: str, entry: MatrixEntry, scale: Tensor | None) -> tuple[Any, str, int] | None:
        """(the matrix of this `entry` and `scale`, its layout's label, its number of non-zeros); None: not cached."""
        cached = self._cached.get(name)
        if self._streams is None or cached is None or not cached.fits(entry, scale):
            return None
        stream = np.asarray(self._streams)[cached.begin : cached.end]
        try:
            matrix = extension().matrix_of(cached.parts.model_dump(), stream)
        except ValueError:  # damaged before its hash was taken
            return None
        self._used[name] = matrix, cached.nonzero
        return matrix, entry.layout(cached.nonzero / (entry.rows * entry.columns)).label, cached.nonzero

    def add(self, name: str, matrix: Any, nonzero: int) -> None:
        """Note a matrix that was not cached, for `write`."""
        if self.at is not None:
            self._used[name] = matrix, nonzero
            self._incomplete = True

    def write(self) -> None:
        """Write the cache unless it is complete. Where that fails, only the time of the next loading is lost."""
        if self.at is None or not self._incomplete:
            return
        size = sum(matrix.bytes for matrix, _ in self._used.values())
        try:
            shutil.rmtree(self.at, ignore_errors=True)  # of the folder as it was; it is not to push out another's
            if not make_room(self.at.parent, size):
                raise OSError(f"{size / 1e9:.1f} GB would leave too little free there")
            with _scratch(self.at.parent) as work:
                self._write(work)
                note_source(work, self.folder)
                (work / LOCK).unlink()
                shutil.rmtree(self.at, ignore_errors=True)
                work.rename(self.at)
        except OSError as error:
            console.print(f"the matrices are not kept in {self.at.parent} ({error})", style="dim", soft_wrap=True)

    def _write(self, work: Path) -> None:
        matrices, begin, digest = {}, 0, hashlib.sha256()
        with open(work / "streams", "wb") as file:
            for name, (matrix, nonzero) in self._used.items():
                parts = extension().parts_of(matrix)
                stream = parts.pop("stream")
                padding = bytes(-len(stream) % LINE)
                for piece in (stream, padding):
                    file.write(piece)
                    digest.update(piece)
                end = begin + len(stream)
                matrices[name] = CachedMatrix(parts=Parts(**parts), begin=begin, end=end, nonzero=nonzero)
                begin = end + len(padding)
        digest.update(_text(matrices))
        index = Index(state=self.state, sha256=digest.hexdigest(), matrices=matrices)
        (work / "index.json").write_text(index.model_dump_json(), encoding="utf-8")


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, to be filled and renamed; it is removed where that was not done, as after Ctrl-C."""
    parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=parent, prefix=SCRATCH))
    try:
        with open(work / LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system unlocks it when this process ends, even by SIGKILL
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove the scratch folders of killed processes from `parent`; a living process holds the lock of its own."""
    for scratch in parent.glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):  # it is locked, or just gone
            if (scratch / LOCK).exists():
                with open(scratch / LOCK) as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(scratch)
            elif time.time() - scratch.stat().st_mtime > ABANDONED:
                shutil.rmtree(scratch)
