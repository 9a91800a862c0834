"""How an artifact came to be: what its command read, by content, and the code and machine that made it."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, lru_cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from sparsedraft.base.hashing import file_hash, text_hash
from sparsedraft.base.places import PROVENANCE

PACKAGES = ("sparsedraft", "torch", "transformers", "tokenizers", "safetensors", "datasets", "pyarrow", "numpy")
VOLATILE = {PROVENANCE, "report", "recipe.yaml"}  # not part of what an artifact *is*


def hash_path(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files (hidden ones and provenance left out)."""
    if path.is_file():
        stat = path.stat()
        return _known_hash(str(path), stat.st_size, stat.st_mtime_ns)
    total = sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        parts = file.relative_to(path).parts
        if not any(part.startswith(".") or part in VOLATILE for part in parts):
            total.update(f"{'/'.join(parts)}\0{hash_path(file)}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _known_hash(path: str, size: int, mtime_ns: int) -> str:
    """The hash of a file, computed once as long as its size and time stay."""
    return file_hash(path)


def describe(value: object) -> Any:
    """`value` as JSON; paths with the hash of what they hold."""
    if isinstance(value, Path):
        return {"path": str(value), "sha256": hash_path(value)}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return value


def without_paths(inputs: Any) -> Any:
    """Described inputs with the hash in the place of each path: the same bytes elsewhere are the same input."""
    if isinstance(inputs, dict):
        if set(inputs) == {"path", "sha256"}:
            return inputs["sha256"]
        return {key: without_paths(item) for key, item in inputs.items()}
    return [without_paths(item) for item in inputs] if isinstance(inputs, list) else inputs


def fingerprint(command: str, inputs: Any, seed: int) -> str:
    """SHA-256 over the command, its described inputs (paths by content) and the seed."""
    text = json.dumps([command, without_paths(inputs), seed], sort_keys=True, ensure_ascii=False)
    return text_hash(text, "surrogatepass")


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The dotted names at which two trees of described inputs differ."""
    if isinstance(old, dict) and isinstance(new, dict) and "sha256" not in new:
        names: list[str] = []
        for key in sorted({*old, *new}):
            names += differences(old.get(key), new.get(key), f"{prefix}{key}.")
        return names
    return [] if without_paths(old) == without_paths(new) else [prefix.rstrip(".") or "command"]


def circumstances(started: float) -> dict[str, object]:
    """What else a provenance says: versions, commit, machine, and the times; `started` in seconds since 1970."""
    now = datetime.now(UTC)
    return {
        "versions": _versions(),
        "commit": _commit(),
        "host": _host(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "finished": now.isoformat(timespec="seconds"),
        "seconds": round(now.timestamp() - started, 1),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def _commit() -> str | None:
    """The commit of the checkout that this package runs from, with "+changes" where it is dirty; None elsewhere."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty=+changes", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _host() -> dict[str, object]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {"platform": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count(), "memory": memory}
