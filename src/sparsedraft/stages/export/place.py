"""Where a file may be written: what it may replace, and whether there is room."""

import shutil
from pathlib import Path

from sparsedraft.base.errors import UserError
from sparsedraft.base.places import LONGEST

SUFFIX = ".gguf"
MAGIC = b"GGUF"  # what such a file begins with


def check_file(out: Path, overwrite: bool) -> None:
    """Raise UserError unless `out` can be written: a new .gguf file, or one that `overwrite` may replace."""
    if any(len(part.encode(errors="replace")) > LONGEST for part in out.parts):
        raise UserError(f"--out {str(out)[:40]}… is too long a name: shorten it.")
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out} does not end in {SUFFIX}: name a file that does, such as drafter{SUFFIX}.")
    if blocked := next((parent for parent in out.parents if parent.exists() and not parent.is_dir()), None):
        raise UserError(f"--out {out} lies under {blocked}, which is a file: name another folder.")
    if out.is_symlink():
        raise UserError(f"--out {out} is a symbolic link: name the file itself.")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file.")
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"--out {out} is there already: name another file, or pass --overwrite.")
    with open(out, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"--out {out} holds something that is not GGUF, so --overwrite does not replace it.")


def check_room(out: Path, needed: int) -> None:
    """Raise UserError where less than `needed` bytes are free where `out` is to be."""
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"--out {out} needs {needed:,} bytes, and {free:,} are free there: free space, or name another."
        )
