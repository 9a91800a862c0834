"""Where an artifact may be made: what its folder may replace, what must never be lost, and who is at work there.

While the folder NAME is made, `.NAME.partial` (the work), `.NAME.old` (what it replaces) and `.NAME.lock` lie beside
it. Somebody else may have taken one of these names; then nothing is deleted and nothing is written.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object

PROVENANCE, NOTE = "provenance.json", ".inputs.json"  # of a finished artifact, of one under way
LONGEST = 240  # bytes of a name, of the 255 that file systems allow: ".", ".partial" and ".tmp" need room


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """The provenance of a finished artifact, or None where `folder` is none."""
    try:
        return read_object(folder / PROVENANCE)
    except UserError:
        return None


def read_note(work: Path) -> dict[str, Any] | None:
    """The command, inputs and fingerprint of what is made in the folder `work`; None where it does not say."""
    try:
        note = read_object(work / NOTE)
    except UserError:
        return read_provenance(work)  # the run was killed while it deleted its scratch files
    return note if isinstance(note.get("fingerprint"), str) else None


def partial_of(out: Path) -> Path:
    """Where the artifact `out` is built."""
    return out.parent / f".{out.name}.partial"


def aside_of(out: Path) -> Path:
    """Where what stood at `out` lies while the new one takes its place."""
    return out.parent / f".{out.name}.old"


def check_place(out: Path) -> None:
    """Raise UserError for an `out` that cannot become a folder by renaming one beside it."""
    if any(len(part.encode(errors="replace")) > LONGEST for part in out.parts):
        raise UserError(f"--out {str(out)[:40]}… is too long a name: shorten it.")
    if out.is_symlink():
        raise UserError(f"--out {out} is a symbolic link: name the folder itself.")
    if out.name in ("", "..") or out.resolve() == Path.cwd():
        raise UserError(f"--out {out} is no name for a new folder: name one, such as ./result.")
    if blocked := next((parent for parent in out.parents if parent.exists() and not parent.is_dir()), None):
        raise UserError(f"--out {out} lies under {blocked}, which is a file: name another folder.")


def check_apart(out: Path, inputs: Mapping[str, object], reads: Sequence[str | Path | None] = ()) -> None:
    """Raise UserError where `out` is, holds, or lies in something that the command reads.

    It reads the paths in `inputs`, however deep they stand, and those of `reads` that exist. Symbolic links count as
    what they lead to.
    """
    place = out.resolve()
    sources = [*_paths(inputs), *(("", Path(os.path.expanduser(read))) for read in reads if read is not None)]
    for name, path in sources:
        what = f"input {name} {path}" if name else f"input {path}"
        try:
            if not path.exists():  # a hub id
                continue
            real = path.resolve()
            links = [file.resolve() for file in path.iterdir() if file.is_symlink()] if path.is_dir() else []
        except OSError:  # no path at all, or one that this user must not see
            continue
        if real == place or real in place.parents:
            raise UserError(f"--out {out} lies in the {what}: name a folder outside it.")
        if any(place == other or place in other.parents for other in (real, *links)):
            raise UserError(f"--out {out} holds the {what}: name another folder.")


def _paths(value: object, name: str = "") -> Iterator[tuple[str, Path]]:
    """(dotted name, path) of every path in an artifact's inputs."""
    if isinstance(value, Path):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item, name)


def check_replaceable(out: Path, command: str) -> None:
    """Raise UserError unless what lies at `out`, if anything, is an artifact of `command` with no other inside it."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    stored = read_provenance(out) if out.is_dir() else None
    if stored is None:
        raise UserError(f"--out {out} holds something that is not ours, so --overwrite does not delete it.")
    if stored.get("command") != command:
        raise UserError(
            f"--out {out} holds the result of '{stored.get('command')}', which '{command} --overwrite' does not "
            "delete: name another folder."
        )
    for inside in sorted({file.parent for name in (PROVENANCE, NOTE) for file in out.rglob(name)} - {out}):
        if (read_note(inside) or {}).get("command") != "report":  # a report can be made again from `out`
            raise UserError(f"--out {out} also holds {inside}, which --overwrite would delete: move it elsewhere.")


def check_neighbours(out: Path, command: str) -> None:
    """Raise UserError where something else than an earlier run of `command` took a name that making `out` needs."""
    for path in (partial_of(out), aside_of(out)):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise _in_the_way(path, out)
    for path, read in ((partial_of(out), read_note), (aside_of(out), read_provenance)):
        if not path.exists() or {file.name for file in path.iterdir()} <= {NOTE, f".{NOTE}.tmp"}:
            continue
        record = read(path)
        if record is None:
            raise _in_the_way(path, out)
        if (other := record.get("command")) != command:
            raise UserError(f"--out {out} has an unfinished run of '{other}': delete {path}, or name another folder.")
    if link := next((file for file in partial_of(out).rglob("*") if file.is_symlink()), None):
        raise UserError(f"{link} is a symbolic link, which no run leaves there: delete it.")


def _in_the_way(path: Path, out: Path) -> UserError:
    return UserError(f"{path} is in the way of --out {out} and not ours: move it, or name another folder.")


def remove(folder: Path) -> None:
    """Delete a folder of ours. The files that say whose it is go last, so that a kill leaves no unknown folder."""
    for path in folder.iterdir():
        if path.name not in (PROVENANCE, NOTE):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.rmtree(folder)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock file of `out` while the block runs, so that two commands never build the same artifact.

    The system gives the lock back when its holder dies. The file is never written to, a link is not followed, and a
    file that holds something is not ours and is refused. (filelock 4 leaves its file behind, and calls a place in use
    where no file can be made.)
    """
    path = out.parent / f".{out.name}.lock"
    if path.is_symlink():
        raise UserError(f"{path}, the lock file of --out {out}, is a symbolic link: delete it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): name a folder that can.") from None
    with file:
        if not _lock(file, path):
            raise UserError(f"--out {out} is being made by another process: wait for it or name another folder.")
        if os.fstat(file.fileno()).st_size:
            raise _in_the_way(path, out)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(file: IO[str], path: Path) -> bool:
    """Lock `file` unless somebody else holds it, or has deleted it since it was opened: then a third may lock a new
    file at `path`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False


def slug(name: str) -> str:
    """`name` as a file name on any file system."""
    return re.sub(r"[^\w.+-]|^\.", "_", name.replace(":", "of"))
