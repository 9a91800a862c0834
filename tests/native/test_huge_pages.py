"""Matrices lie close together in pages of 2 MB, and give their memory back."""

import gc
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsedraft.native.extension import extension

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MIB = 2**20


def mib_of(name: str) -> float:
    """What /proc says of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def small(rows: int = 512, columns: int = 512) -> Any:
    """A matrix of a quarter of a MiB, which alone would fill no page of 2 MB."""
    return extension().matrix(
        np.ones((rows, columns), np.int8), "i8", "dense", 0, np.ones(rows, np.float32), activations=8
    )


@pytest.mark.skipif(
    not ENABLED.exists() or "[never]" in ENABLED.read_text(encoding="utf-8"), reason="there are no such pages here"
)
def test_small_matrices_share_huge_pages_which_go_with_the_last() -> None:
    """In a process of their own, where no others lie among them."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def given(size: int) -> float:
    """The share of so many bytes that the system puts into such pages, where they are asked for."""
    before, pages = mib_of("AnonHugePages"), mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    pages.write(bytes(size))
    found = mib_of("AnonHugePages") - before
    pages.close()
    return found * MIB / size


def check() -> None:
    share = given(100 * MIB)  # less than 1 where memory is in pieces
    huge, all_pages = mib_of("AnonHugePages"), mib_of("Rss")
    matrices = [small() for _ in range(400)]
    held = sum(matrix.bytes for matrix in matrices) / MIB
    assert mib_of("AnonHugePages") - huge >= share * held / 2
    assert mib_of("Rss") - all_pages < held + 8, "close together: at most a few pages are not full"
    kept = matrices[100]
    del matrices
    gc.collect()
    assert mib_of("Rss") - all_pages < 64 + 8, "one stretch is left"
    pool = extension().Pool(1)
    x = np.ones((1, 512), np.float32)
    assert np.allclose(extension().multiply([kept], x, pool)[0], 512, rtol=0.02), "and it holds what it held"


if __name__ == "__main__":
    check()
