"""Where an artifact may be made: what its folder may replace, what must never be lost, and who is at work there.

Beside the folder NAME lie, while it is made, `.NAME.partial` (the work), `.NAME.old` (what it replaces) and
`.NAME.lock`. Each of these names may have been taken by somebody else; then nothing is deleted and nothing written.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsedraft.base.errors import UserError
from sparsedraft.base.sidefiles import read_object

PROVENANCE, NOTE = "provenance.json", ".inputs.json"  # of a finished artifact, of one under way


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """The provenance of a finished artifact, or None where `folder` is none."""
    try:
        return read_object(folder / PROVENANCE)
    except UserError:
        return None


def read_note(work: Path) -> dict[str, Any] | None:
    """What is made in the work folder `work`: its command, inputs and fingerprint; None where it does not say."""
    try:
        found = read_object(work / NOTE)
    except UserError:
        return read_provenance(work)  # killed while its scratch files went away
    return found if isinstance(found.get("fingerprint"), str) else None


def partial_of(out: Path) -> Path:
    """Where the artifact `out` is built."""
    return out.parent / f".{out.name}.partial"


def aside_of(out: Path) -> Path:
    """Where what stood at `out` lies while the new one takes its place."""
    return out.parent / f".{out.name}.old"


def check_place(out: Path) -> None:
    """Raise UserError for an `out` that cannot become a folder by renaming one beside it."""
    if any(len(part.encode(errors="replace")) > 240 for part in out.parts):  # room for what stands around a name
        raise UserError(f"--out {str(out)[:40]}… is too long a name: shorten it.")
    if out.is_symlink():
        raise UserError(f"--out {out} is a symbolic link: name the folder itself.")
    if out.name in ("", "..") or out.resolve() == Path.cwd():
        raise UserError(f"--out {out} is no name for a new folder: name one, such as ./result.")
    if blocked := next((parent for parent in out.parents if parent.exists() and not parent.is_dir()), None):
        raise UserError(f"--out {out} lies under {blocked}, which is a file: name another folder.")


def check_apart(out: Path, inputs: Mapping[str, object], reads: Sequence[str | Path | None] = ()) -> None:
    """Raise UserError where `out` is, holds, or lies in something that the command reads.

    Meant are the paths in `inputs`, however deep, and those of `reads` that exist; also through symbolic links.
    """
    place = out.resolve()
    named = [*_paths(inputs), *(("", Path(os.path.expanduser(read))) for read in reads if read is not None)]
    for name, path in named:
        what = f"input {name} {path}" if name else f"input {path}"
        try:
            if not path.exists():  # a hub id
                continue
            real = path.resolve()
            links = [file.resolve() for file in path.iterdir() if file.is_symlink()] if path.is_dir() else []
        except OSError:  # no path at all, or one that this user may not see
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
        if (read_note(inside) or {}).get("command") != "report":  # which follows from what it lies in
            raise UserError(f"--out {out} also holds {inside}, which --overwrite would delete: move it elsewhere.")


def check_neighbours(out: Path, command: str) -> None:
    """Raise UserError where a name that making `out` needs is taken by something that it did not leave there."""
    for path in (partial_of(out), aside_of(out)):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise _in_the_way(path, out)
    for path, stored in ((partial_of(out), read_note), (aside_of(out), read_provenance)):
        if not path.exists() or {file.name for file in path.iterdir()} <= {NOTE, f".{NOTE}.tmp"}:
            continue
        found = stored(path)
        if found is None:
            raise _in_the_way(path, out)
        if found.get("command") != command:
            raise UserError(
                f"--out {out} has an unfinished run of '{found.get('command')}': delete {path}, or name another folder."
            )
    if link := next((file for file in partial_of(out).rglob("*") if file.is_symlink()), None):
        raise UserError(f"{link} is a symbolic link, which no run leaves there: delete it.")


def _in_the_way(path: Path, out: Path) -> UserError:
    return UserError(f"{path} is in the way of --out {out} and not ours: move it, or name another folder.")


def remove(folder: Path) -> None:
    """Delete a folder of ours; what says that it is ours goes last, so that a kill leaves nothing unknown behind."""
    for path in folder.iterdir():
        if path.name not in (PROVENANCE, NOTE):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.rmtree(folder)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock file of `out` while the block runs, so that two commands never build the same artifact.

    Nothing is written to it, and no link followed: a file there that says something is somebody's, and is refused.
    """
    path = out.parent / f".{out.name}.lock"
    made = UserError(f"--out {out} is being made by another process: wait for it or name another folder.")
    if path.is_symlink():
        raise UserError(f"{path}, the lock file of --out {out}, is a symbolic link: delete it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): name a folder that can.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), path.lstat()):
                raise made  # its holder has just removed it, and a third locks another
        except (BlockingIOError, FileNotFoundError):
            raise made from None
        if os.fstat(file.fileno()).st_size:
            raise _in_the_way(path, out)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def slug(name: str) -> str:
    """`name` as a file name on any file system."""
    return re.sub(r"[^\w.+-]|^\.", "_", name.replace(":", "of"))
