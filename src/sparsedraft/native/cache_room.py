"""Room in the folder of laid-out matrices: what is not needed any more goes, and the disk is never filled.

A cache is as large as its model. Without this, every folder that was ever packed would stay here a second time.
"""

import contextlib
import os
import shutil
import time
from pathlib import Path

SOURCE = "source"  # file in a cache: the packed folder that it is of
USED = "index.json"  # its time of change is that of the last use
UNUSED = 30 * 86400.0  # seconds without use after which a cache goes
RESERVE = 4 << 30  # bytes that a cache leaves free on its disk


def note_source(cache: Path, folder: Path) -> None:
    """Write down of which packed folder the `cache` is."""
    (cache / SOURCE).write_text(str(folder.resolve()), encoding="utf-8", errors="surrogateescape")


def note_use(cache: Path) -> None:
    """Count the cache as used now."""
    with contextlib.suppress(OSError):  # another user's: it is read all the same
        os.utime(cache / USED)


def make_room(parent: Path, size: int) -> bool:
    """Whether a cache of `size` bytes may be written into `parent`, which leaves RESERVE free.

    Caches go whose packed folder is gone, or that were not used for UNUSED; then, where that is not enough, those that
    were not used for the longest time. None goes in vain: where all of them would not do, only the first two kinds do.
    """
    parent.mkdir(parents=True, exist_ok=True)  # its disk is asked for room
    caches = sorted(_caches(parent))  # the least recently used first
    left = []
    for used, cache in caches:
        if _gone(cache) or time.time() - used > UNUSED:
            shutil.rmtree(cache, ignore_errors=True)
        else:
            left.append(cache)
    lacking = size + RESERVE - shutil.disk_usage(parent).free
    if lacking > sum(map(_bytes, left)):
        return False
    for cache in left:
        if lacking <= 0:
            break
        lacking -= _bytes(cache)
        shutil.rmtree(cache, ignore_errors=True)
    return True


def _caches(parent: Path) -> list[tuple[float, Path]]:
    """(when it was last used, the folder) of each cache in `parent`."""
    found = []
    for cache in parent.iterdir():
        with contextlib.suppress(OSError):  # it is being filled, or just gone
            found.append(((cache / USED).stat().st_mtime, cache))
    return found


def _gone(cache: Path) -> bool:
    """Whether the packed folder is no more; False where an older version wrote no source."""
    try:
        source = (cache / SOURCE).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    return not Path(source).is_dir()


def _bytes(cache: Path) -> int:
    total = 0
    for file in cache.iterdir():
        with contextlib.suppress(OSError):
            total += file.stat().st_size
    return total
