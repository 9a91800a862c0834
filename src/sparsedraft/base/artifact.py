"""Artifacts: folders that are made once, in one piece, and say how they came to be.

A stage builds in a hidden folder `.NAME.partial` beside the wanted one and renames it when all is done, so a folder
without the dot is always whole. The hidden folder survives a kill; the same command with the same inputs gets it back
and goes on from whatever it finds there.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.base.hashing import file_hash, text_hash
from sparsedraft.base.places import (
    NOTE,
    PROVENANCE,
    aside_of,
    check_apart,
    check_neighbours,
    check_place,
    check_replaceable,
    locked,
    partial_of,
    read_note,
    read_provenance,
    remove,
)
from sparsedraft.base.sidefiles import dumps, read_object

PACKAGES = ("sparsedraft", "torch", "transformers", "tokenizers", "safetensors", "datasets", "pyarrow", "numpy")
GROWN_FROM = ("fingerprint", "commit", "finished", "seconds")  # what is kept of an older provenance
VOLATILE = {PROVENANCE, "report", "recipe.yaml"}  # not part of what an artifact *is*


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


def write_json(path: Path, obj: object) -> None:
    """Write `obj` as indented JSON, atomically."""
    with write_atomic(path) as temporary:
        temporary.write_text(dumps(obj, indent=1) + "\n", encoding="utf-8")


@lru_cache(maxsize=4096)
def _file_hash(path: str, size: int, mtime_ns: int) -> str:
    return file_hash(path)


def hash_path(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files (hidden ones and provenance left out)."""
    if path.is_file():
        stat = path.stat()
        return _file_hash(str(path), stat.st_size, stat.st_mtime_ns)
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        parts = file.relative_to(path).parts
        if not any(part.startswith(".") or part in VOLATILE for part in parts):
            total.update(f"{'/'.join(parts)}\0{hash_path(file)}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def _describe(value: object) -> object:
    """`value` as JSON; paths with the hash of what they hold."""
    if isinstance(value, Path):
        return {"path": str(value), "sha256": hash_path(value)}
    if isinstance(value, Mapping):
        return {str(key): _describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    return value


def _without_paths(value: Any) -> Any:
    """Drop where a path lay and keep its hash: the same bytes elsewhere are the same input."""
    if isinstance(value, dict):
        return value["sha256"] if set(value) == {"path", "sha256"} else {k: _without_paths(v) for k, v in value.items()}
    return [_without_paths(item) for item in value] if isinstance(value, list) else value


def fingerprint(command: str, inputs: Any, seed: int) -> str:
    """SHA-256 over the command, its described inputs (paths by content) and the seed."""
    text = json.dumps([command, _without_paths(inputs), seed], sort_keys=True, ensure_ascii=False)
    return text_hash(text, "surrogatepass")


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


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _changed(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The dotted names at which two input trees differ."""
    if isinstance(old, dict) and isinstance(new, dict) and "sha256" not in new:
        names: list[str] = []
        for key in sorted({*old, *new}):
            names += _changed(old.get(key), new.get(key), f"{prefix}{key}.")
        return names
    return [] if _without_paths(old) == _without_paths(new) else [prefix.rstrip(".") or "command"]


def _has_grown(wanted: "_Wanted", old: Any, *, begun: bool = False) -> bool:
    """Whether the inputs differ from `old` in nothing but what may: see `make`. `begun`: the old ones' artifact is
    unfinished."""
    name, free, new = wanted.grows, wanted.free, wanted.inputs
    if name is None or not isinstance(old, dict):
        return False
    if any(changed not in free and changed.split(".")[0] != name for changed in _changed(old, new)):
        return False
    before, now = _parts(old.get(name)), _parts(new[name])
    return before <= now or (begun and isinstance(new[name], list) and 2 * len(before & now) >= len(before))


def _parts(value: Any) -> set[str]:
    """The parts of a list, or of a mapping with their names, as JSON."""
    parts = value.items() if isinstance(value, dict) else value or ()
    return {json.dumps(_without_paths(part if isinstance(part, list) else [*part])) for part in parts}


def _refuse(folder: Path, stored: dict[str, Any], command: str, inputs: Any) -> UserError:
    if stored.get("command") != command:
        return UserError(f"--out {folder} holds the result of '{stored.get('command')}': name another folder.")
    names = ", ".join(_changed(stored.get("inputs"), inputs)) or "seed"
    return UserError(
        f"--out {folder} was made with other inputs (changed: {names}): name another folder, or pass --overwrite."
    )


def _result(folder: Path) -> dict[str, Any]:
    return read_object(folder / "result.json", "make it again with --overwrite")


def make(
    out: Path,
    command: str,
    inputs: Mapping[str, object],
    build: Callable[[Path], dict[str, Any]],
    *,
    seed: int = 0,
    overwrite: bool = False,
    renew: bool = False,
    grows: str | None = None,
    free: Sequence[str] = (),
    reads: Sequence[str | Path | None] = (),
) -> dict[str, Any]:
    """Make the artifact `out` by `build(work_folder)` unless it is already there; return build's result.

    Inputs that are `Path`s count by content. `build` must pick up what an interrupted call left in its work folder.
    Files whose names start with "." are scratch: there to resume from, deleted before the rename.
    `overwrite`: an artifact that `command` made from other inputs is replaced; nothing else ever is.
    `renew`: what was made from other inputs is made anew (for what takes seconds and follows from what lies there).
    `grows`: an input that maps names to parts, or lists them. Where it has but got more of them the artifact is made
    anew, too, while the old one still lies at `out`: there for `build` to take from. An unfinished one is taken up even
    if parts of a list are gone, half of them at most. `free`: dotted names of other inputs, whose change leaves what is
    made already as it is, and so hinders none of this.
    `reads`: what else the command reads; those of them that are paths must not lie in `out`, nor it in them.
    Raises UserError if `out` holds something else, or another process is making it.
    """
    check_place(out)
    check_apart(out, inputs, reads)
    described = _describe(dict(inputs))
    wanted = _Wanted(out, command, described, fingerprint(command, described, seed), seed, overwrite, grows, None, free)
    if _stands(wanted, renew)[0]:
        console.print(f"{out}: already done", style="dim", soft_wrap=True)
        return _result(out)
    with locked(out):
        done, wanted = _stands(wanted, renew)  # once more: another process may just have finished one
        if done:
            return _result(out)
        check_neighbours(out, command)
        work, aside = wanted.work, aside_of(out)
        # provenance is written last: a run that was killed after it has but to be put in its place
        if (read_provenance(work) or {}).get("fingerprint") != wanted.mark:
            _build(wanted, build)
        for scratch in work.glob(".*"):
            shutil.rmtree(scratch) if scratch.is_dir() and not scratch.is_symlink() else scratch.unlink()
        if aside.exists():
            remove(aside)
        if out.exists():  # in one step: half of a folder would be nobody's
            os.replace(out, aside)
        os.replace(work, out)
        if aside.exists():
            remove(aside)
    return _result(out)


def _stands(wanted: "_Wanted", renew: bool) -> tuple[bool, "_Wanted"]:
    """(whether it is there already, what is to be made and how); UserError where what is there must stay."""
    out = wanted.out
    if not wanted.overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        stored = read_provenance(out) if out.is_dir() else None
        if stored is None:
            raise UserError(f"--out {out} holds something else: name an empty or a new folder.")
        if stored.get("fingerprint") == wanted.mark:
            return True, wanted
        grown = stored.get("seed") == wanted.seed and _has_grown(wanted, stored.get("inputs"))
        if stored.get("command") != wanted.command or not (renew or grown):
            raise _refuse(out, stored, wanted.command, wanted.inputs)
        wanted = replace(wanted, overwrite=renew, old=stored if grown else None)
    check_replaceable(out, wanted.command)
    return False, wanted


@dataclass(frozen=True)
class _Wanted:
    """An artifact still to be made; `old` is the provenance of the finished one that it grows from."""

    out: Path
    command: str
    inputs: Any  # as _describe gives them
    mark: str  # their fingerprint
    seed: int
    overwrite: bool
    grows: str | None
    old: dict[str, Any] | None
    free: Sequence[str] = ()

    @property
    def work(self) -> Path:
        """Where it is built."""
        return partial_of(self.out)


def _build(wanted: _Wanted, build: Callable[[Path], dict[str, Any]]) -> None:
    """Fill the work folder, its provenance last."""
    started, work, old = _open_work(wanted), wanted.work, wanted.old
    try:
        result = build(work)
    except UserError:
        if not any(file.is_file() and file.stat().st_size for file in work.rglob("*") if file.name != NOTE):
            remove(work)  # refused before any work was done: the mended command must not trip over it
        raise
    provenance = {
        "command": wanted.command,
        "inputs": wanted.inputs,
        "fingerprint": wanted.mark,
        "seed": wanted.seed,
        "versions": _versions(),
        "commit": _commit(),
        "host": _host(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        **({"grown_from": {key: old.get(key) for key in GROWN_FROM}} if old else {}),
    }
    write_json(work / "result.json", result)
    write_json(work / PROVENANCE, provenance)


def _began(note: dict[str, Any]) -> float:
    """When the work that `note` is about began."""
    started = note.get("started")
    return started if isinstance(started, int | float) and 0 <= started <= time.time() else time.time()


def _open_work(wanted: _Wanted) -> float:
    """Make the work folder, or take up the one that an interrupted call left; return its birth.

    Taken up is that of the same inputs, or of fewer parts of what grows; but where all is to be made anew
    (`overwrite`) none that began with parts of the finished artifact.
    """
    work, growing = wanted.work, wanted.old is not None
    note = work / NOTE
    if work.exists():
        stored = read_note(work)  # None: killed before its first file was whole, and nothing is lost by starting afresh
        if stored is not None and not (wanted.overwrite and stored.get("growing")):
            same = stored.get("fingerprint") == wanted.mark
            seeded = stored.get("fingerprint") == fingerprint(wanted.command, stored.get("inputs"), wanted.seed)
            grown = seeded and _has_grown(wanted, stored.get("inputs"), begun=True)
            if not same and not wanted.overwrite and grown:
                same = True
                write_json(note, {**stored, "inputs": wanted.inputs, "fingerprint": wanted.mark})
            if same:
                console.print(f"{work}: going on where an earlier run stopped", style="dim", soft_wrap=True)
                return _began(stored)
        if stored is not None and not wanted.overwrite:
            changed = ", ".join(_changed(stored.get("inputs"), wanted.inputs)) or "seed"
            drop = f"delete {work}" if growing else "pass --overwrite to drop it"  # which would drop the finished one
            raise UserError(
                f"--out {wanted.out} has an unfinished run with other inputs (changed: {changed}): {drop}, or name "
                "another folder."
            )
        remove(work)
    work.mkdir(parents=True)
    begun = {"command": wanted.command, "inputs": wanted.inputs, "fingerprint": wanted.mark}
    started = time.time()
    write_json(note, {**begun, "started": started, "growing": growing})
    return started
