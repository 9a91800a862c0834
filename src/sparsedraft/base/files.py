"""Files that are whole or not there at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsedraft.base.errors import UserError


@contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; renamed to it when the block succeeds, removed when it does not.

    What a kill or somebody else left under that name goes first: writing must not follow a link.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    if temporary.is_dir() and not temporary.is_symlink():
        raise UserError(f"{temporary} is in the way of writing {path.name} and not ours: move it.")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
