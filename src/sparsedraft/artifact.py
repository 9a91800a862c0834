"""Artifacts: folders that are made once, in one piece, and say how they came to be.

A stage builds in a hidden folder `.NAME.partial` beside the wanted one and renames it when all is done, so a folder
without the dot is always whole. The hidden folder survives a kill; the same command with the same inputs gets it back
and goes on from whatever it finds there.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sparsedraft.console import console
from sparsedraft.errors import UserError

PACKAGES = ("sparsedraft", "torch", "transformers", "tokenizers", "safetensors", "datasets", "pyarrow", "numpy")
VOLATILE = {"provenance.json", "report", "recipe.yaml"}  # not part of what an artifact *is*


@contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; renamed to it when the block succeeds, removed when it does not."""
    temporary = path.with_name(f".{path.name}.tmp")
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
        temporary.write_text(json.dumps(obj, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@lru_cache(maxsize=4096)
def _file_hash(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_path(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files (hidden ones and provenance left out)."""
    if path.is_file():
        stat = path.stat()
        return _file_hash(str(path), stat.st_size, stat.st_mtime_ns)
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        parts = file.relative_to(path).parts
        if not any(part.startswith(".") or part in VOLATILE for part in parts):
            total.update(f"{'/'.join(parts)}\0{hash_path(file)}\n".encode())
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
    return hashlib.sha256(text.encode()).hexdigest()


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


def _has_grown(old: Any, new: Any, name: str | None) -> bool:
    """Whether the inputs differ in nothing but parts that were added to the mapping `name`."""
    if name is None or not isinstance(old, dict) or not isinstance(old.get(name), dict):
        return False
    kept = {part: value for part, value in new[name].items() if part in old[name]}
    return bool(_without_paths({**new, name: kept}) == _without_paths(old))


def _refuse(folder: Path, stored: dict[str, Any], command: str, inputs: Any) -> UserError:
    if stored.get("command") != command:
        return UserError(f"--out {folder} holds the result of '{stored.get('command')}': name another folder.")
    names = ", ".join(_changed(stored.get("inputs"), inputs)) or "seed"
    return UserError(
        f"--out {folder} was made with other inputs (changed: {names}): name another folder, or pass --overwrite."
    )


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """The provenance of a finished artifact, or None where `folder` is none."""
    try:
        found = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _result(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--out {folder} is damaged (result.json: {error}): make it again with --overwrite.") from None


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
) -> dict[str, Any]:
    """Make the artifact `out` by `build(work_folder)` unless it is already there; return build's result.

    Inputs that are `Path`s count by content. `build` must pick up what an interrupted call left in its work folder.
    Files whose names start with "." are scratch: there to resume from, deleted before the rename.
    `renew`: what was made from other inputs is made anew (for what takes seconds and follows from what lies there).
    `grows`: an input that maps names to parts. Where it has but got more of them the artifact is made anew, too, while
    the old one still lies at `out`: there for `build` to take from.
    Raises UserError if `out` holds something else, or another process is making it.
    """
    _check_place(out)
    for name, value in inputs.items():
        if isinstance(value, Path) and value.resolve() in (out.resolve(), *out.resolve().parents):
            raise UserError(f"--out {out} lies in the input {name} {value}: name a folder outside it.")
    described = _describe(dict(inputs))
    mark = fingerprint(command, described, seed)
    old: dict[str, Any] | None = None  # what the artifact grows from
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        stored = read_provenance(out) if out.is_dir() else None
        if stored is None:
            raise UserError(f"--out {out} holds something else: name an empty or a new folder.")
        if stored.get("fingerprint") == mark:
            console.print(f"[dim]{out}: already done[/dim]", soft_wrap=True)
            return _result(out)
        grown = stored.get("seed") == seed and _has_grown(stored.get("inputs"), described, grows)
        if stored.get("command") != command or not (renew or grown):
            raise _refuse(out, stored, command, described)
        overwrite, old = renew, stored if grown else None
    if overwrite and out.exists() and (not out.is_dir() or (any(out.iterdir()) and read_provenance(out) is None)):
        raise UserError(f"--out {out} holds something that is not ours, so --overwrite does not delete it.")
    wanted = _Wanted(out, command, described, mark, seed, overwrite, grows, old)
    work = wanted.work
    with _locked(out.parent / f".{out.name}.lock", out):
        # provenance is written last: a run that was killed after it has but to be put in its place
        if (read_provenance(work) or {}).get("fingerprint") != mark:
            _build(wanted, build)
        for scratch in work.glob(".*"):
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
        aside = out.parent / f".{out.name}.old"
        if aside.exists():
            shutil.rmtree(aside)
        if out.exists():  # in one step: half of a folder would be nobody's
            os.replace(out, aside)
        os.replace(work, out)
        if aside.exists():
            shutil.rmtree(aside)
    return _result(out)


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

    @property
    def work(self) -> Path:
        """Where it is built."""
        return self.out.parent / f".{self.out.name}.partial"


def _build(wanted: _Wanted, build: Callable[[Path], dict[str, Any]]) -> None:
    """Fill the work folder, its provenance last."""
    started, work, old = _open_work(wanted), wanted.work, wanted.old
    try:
        result = build(work)
    except UserError:
        if not any(file.is_file() and file.stat().st_size for file in work.rglob("*") if file.name != ".inputs.json"):
            shutil.rmtree(work)  # refused before any work was done: the mended command must not trip over it
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
        **({"grown_from": {key: old[key] for key in ("fingerprint", "commit", "finished", "seconds")}} if old else {}),
    }
    write_json(work / "result.json", result)
    write_json(work / "provenance.json", provenance)


def _check_place(out: Path) -> None:
    """Raise UserError for an `out` that cannot become a folder by renaming one beside it."""
    if any(len(part.encode(errors="replace")) > 240 for part in out.parts):  # room for what stands around a name
        raise UserError(f"--out {str(out)[:40]}… is too long a name: shorten it.")
    if out.is_symlink():
        raise UserError(f"--out {out} is a symbolic link: name the folder itself.")
    if out.name in ("", "..") or out.resolve() == Path.cwd():
        raise UserError(f"--out {out} is no name for a new folder: name one, such as ./result.")
    if blocked := next((parent for parent in out.parents if parent.exists() and not parent.is_dir()), None):
        raise UserError(f"--out {out} lies under {blocked}, which is a file: name another folder.")


def _open_work(wanted: _Wanted) -> float:
    """Make the work folder, or take up the one that an interrupted call left; return its birth.

    Taken up is that of the same inputs, or of fewer parts of what grows; but where all is to be made anew
    (`overwrite`) none that began with parts of the finished artifact.
    """
    work, growing = wanted.work, wanted.old is not None
    note = work / ".inputs.json"
    if work.exists():
        try:
            stored = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            stored = None  # killed before its first file was whole: nothing is lost by starting afresh
        if stored is not None and not (wanted.overwrite and stored.get("growing")):
            same = stored["fingerprint"] == wanted.mark
            if not same and not wanted.overwrite and _has_grown(stored.get("inputs"), wanted.inputs, wanted.grows):
                same = True
                write_json(note, {**stored, "inputs": wanted.inputs, "fingerprint": wanted.mark})
            if same:
                console.print(f"[dim]{work}: going on where an earlier run stopped[/dim]", soft_wrap=True)
                return float(stored["started"])
        if stored is not None and not wanted.overwrite:
            changed = ", ".join(_changed(stored.get("inputs"), wanted.inputs)) or "seed"
            drop = f"delete {work}" if growing else "pass --overwrite to drop it"  # which would drop the finished one
            raise UserError(
                f"--out {wanted.out} has an unfinished run with other inputs (changed: {changed}): {drop}, or name "
                "another folder."
            )
        shutil.rmtree(work)
    work.mkdir(parents=True)
    begun = {"command": wanted.command, "inputs": wanted.inputs, "fingerprint": wanted.mark}
    started = time.time()
    write_json(note, {**begun, "started": started, "growing": growing})
    return started


@contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, so that two commands never build the same artifact."""
    made = UserError(f"--out {out} is being made by another process: wait for it or name another folder.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): name a folder that can.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise made  # its holder has just removed it, and a third locks another
        except (BlockingIOError, FileNotFoundError):
            raise made from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
