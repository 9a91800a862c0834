"""SHA-256 where it decides something: what a file holds, in which order rows come, which seed a draw has.

Nothing here depends on the process, the platform or the order in which things arrive.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def file_hash(path: str | Path) -> str:
    """SHA-256 of the bytes of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SAMPLES, SAMPLE = 64, 4096  # pieces of a file, and bytes of each


def sampled_hash(path: Path) -> str:
    """SHA-256 of the size of a file and of pieces at equal distances, first and last included; of all of a small file.

    It tells files apart that differ as checkpoints do, in a few milliseconds. It proves nothing of what lies between.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}\0".encode())
    with open(path, "rb") as file:
        if size <= SAMPLES * SAMPLE:
            digest.update(file.read())
        else:
            for i in range(SAMPLES):
                file.seek((size - SAMPLE) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def text_hash(text: str, errors: str = "strict") -> str:
    """SHA-256 of `text` in UTF-8, in hex; `errors` as in str.encode."""
    return hashlib.sha256(text.encode(errors=errors)).hexdigest()


def stable_order(items: Iterable[T], key: Callable[[T], str]) -> list[T]:
    """`items` by the hash of their `key`: a shuffle in which each keeps its place whatever else is shuffled with it."""
    return sorted(items, key=lambda item: text_hash(key(item)))


def seed_of(*parts: object) -> int:
    """56 uniform bits from `parts`, written with "/" between them: a seed, or a draw from 0 … 2⁵⁶ - 1."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
