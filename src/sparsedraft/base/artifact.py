"""Artifacts: folders that are made once, in one piece, and say how they came to be.

A stage builds in a hidden folder `.NAME.partial` beside the wanted one and renames it when all is done, so a folder
without the dot is always whole. The hidden folder survives a kill; the same command with the same inputs gets it back
and goes on from whatever it finds there.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object, write_json
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
from sparsedraft.base.provenance import circumstances, describe, differences, fingerprint, without_paths

GROWN_FROM = ("fingerprint", "commit", "finished", "seconds")  # what a provenance keeps of the one it grew from


class State(Enum):
    """What a folder holds, seen from the artifact that is to be made."""

    ABSENT = auto()  # nothing
    FOREIGN = auto()  # something that no command of ours made
    OTHER_COMMAND = auto()  # the artifact of another command
    SAME = auto()  # this artifact: same command, inputs and seed
    SMALLER = auto()  # this artifact with fewer parts of the input that may grow
    OTHER_INPUTS = auto()  # the artifact of this command from other inputs


@dataclass(frozen=True)
class Tolerance:
    """Inputs that may differ from those of an artifact that is there already: it is made again without --overwrite.

    `anything`: all may (for an artifact that takes seconds and follows from what lies beside it). `grows`: the name of
    an input that maps names to parts, or lists parts, and may have more of them; the old artifact stays at its place
    for `build` to take from. `free`: dotted names of inputs that may change when the artifact grows, because no part
    that is made already depends on them.
    """

    anything: bool = False
    grows: str | None = None
    free: Sequence[str] = ()


EXACT = Tolerance()


@dataclass(frozen=True)
class _Order:
    """An artifact that somebody asks for; `inputs` are described."""

    out: Path
    command: str
    inputs: Any
    seed: int
    overwrite: bool
    tolerance: Tolerance

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.command, self.inputs, self.seed)

    @property
    def work(self) -> Path:
        """Where it is built."""
        return partial_of(self.out)


@dataclass(frozen=True)
class _Start:
    """What the building of an artifact begins with."""

    drop: bool = False  # an unfinished run with other inputs goes
    old: dict[str, Any] | None = None  # provenance of the finished artifact that this one grows from


def make(
    out: Path,
    command: str,
    inputs: Mapping[str, object],
    build: Callable[[Path], dict[str, Any]],
    *,
    seed: int = 0,
    overwrite: bool = False,
    tolerance: Tolerance = EXACT,
    reads: Sequence[str | Path | None] = (),
) -> dict[str, Any]:
    """Make the artifact `out` by `build(work_folder)` unless it is already there; return build's result.

    Inputs that are `Path`s count by content. `build` must pick up what an interrupted call left in its work folder.
    Files whose names start with "." are scratch: there to resume from, deleted before the rename.
    `overwrite`: an artifact that `command` made from other inputs is replaced; nothing else ever is. `tolerance` says
    which inputs may differ without it.
    `reads`: what else the command reads; those of them that are paths must not lie in `out`, nor it in them.
    Raises UserError if `out` holds something else, or another process is making it.
    """
    check_place(out)
    check_apart(out, inputs, reads)
    order = _Order(out, command, describe(dict(inputs)), seed, overwrite, tolerance)
    if _start(order) is None:
        console.print(f"{out}: already done", style="dim", soft_wrap=True)
        return _result(out)
    with locked(out):
        start = _start(order)  # again: another process may have finished one in the meantime
        if start is not None:
            check_neighbours(out, command)
            if (read_provenance(order.work) or {}).get("fingerprint") != order.fingerprint:
                _build(order, start, build)
            _put_in_place(order)
    return _result(out)


def _result(folder: Path) -> dict[str, Any]:
    return read_object(folder / "result.json", "make it again with --overwrite")


# ---- the state of the two folders


def _state_of_out(order: _Order) -> tuple[State, dict[str, Any]]:
    """What lies where the artifact is to be, and its provenance."""
    out = order.out
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return State.ABSENT, {}
    provenance = read_provenance(out) if out.is_dir() else None
    if provenance is None:
        return State.FOREIGN, {}
    return _compared(order, provenance, provenance.get("seed") == order.seed), provenance


def _state_of_work(order: _Order) -> tuple[State, dict[str, Any]]:
    """What an interrupted run left in the work folder, and its note; others' folders are refused before.

    A run that was killed before its first file was whole left nothing.
    """
    note = read_note(order.work) if order.work.exists() else None
    if note is None:
        return State.ABSENT, {}
    same_seed = note.get("fingerprint") == fingerprint(order.command, note.get("inputs"), order.seed)
    return _compared(order, note, same_seed, unfinished=True), note


def _compared(order: _Order, record: dict[str, Any], same_seed: bool, unfinished: bool = False) -> State:
    """The state of a folder of which `record` says command, inputs and fingerprint."""
    if record.get("fingerprint") == order.fingerprint:
        return State.SAME
    if record.get("command") != order.command:
        return State.OTHER_COMMAND
    grown = same_seed and _has_grown(order, record.get("inputs"), unfinished)
    return State.SMALLER if grown else State.OTHER_INPUTS


def _has_grown(order: _Order, old: Any, unfinished: bool) -> bool:
    """Whether the inputs differ from `old` by more parts alone, and what is free.

    Of an unfinished artifact with a list of parts, up to half of them may be gone, too: the rest of the work counts.
    """
    name, new = order.tolerance.grows, order.inputs
    if name is None or not isinstance(old, dict):
        return False
    changes = [change for change in differences(old, new) if change not in order.tolerance.free]
    if any(change.split(".")[0] != name for change in changes):
        return False
    before, now = _parts(old.get(name)), _parts(new[name])
    return before <= now or (unfinished and isinstance(new[name], list) and 2 * len(before & now) >= len(before))


def _parts(value: Any) -> set[str]:
    """The parts of a list, or of a mapping with their names, as JSON."""
    parts = value.items() if isinstance(value, dict) else value or ()
    return {json.dumps(without_paths(part if isinstance(part, list) else [*part])) for part in parts}


# ---- what is done about them


def _start(order: _Order) -> _Start | None:
    """How to begin, by what lies at `out`; None where that is the artifact, UserError where it must stay."""
    state, provenance = _state_of_out(order)
    start = _Start(drop=order.overwrite)
    if not order.overwrite:
        match state:
            case State.SAME:
                return None
            case State.FOREIGN:
                raise UserError(f"--out {order.out} holds something else: name an empty or a new folder.")
            case State.OTHER_COMMAND:
                raise UserError(
                    f"--out {order.out} holds the result of '{provenance.get('command')}': name another folder."
                )
            case State.OTHER_INPUTS if not order.tolerance.anything:
                raise UserError(
                    f"--out {order.out} was made with other inputs (changed: {_changes(order, provenance)}): name "
                    "another folder, or pass --overwrite."
                )
            case State.OTHER_INPUTS:
                start = _Start(drop=True)
            case State.SMALLER:
                start = _Start(old=provenance)
    check_replaceable(order.out, order.command)
    return start


def _open_work(order: _Order, start: _Start) -> float:
    """Make the work folder, or take up the one that an interrupted run left; when its work began, in seconds."""
    state, note = _state_of_work(order)
    # parts that were taken from a finished artifact do not stay where all is to be made from the start
    borrowed = start.drop and note.get("growing")
    match state:
        case State.SAME if not borrowed:
            return _taken_up(order, note)
        case State.SMALLER if not start.drop:
            write_json(order.work / NOTE, {**note, "inputs": order.inputs, "fingerprint": order.fingerprint})
            return _taken_up(order, note)
        case State.OTHER_INPUTS | State.OTHER_COMMAND if not start.drop:
            # --overwrite would drop the finished artifact, too
            drop = f"delete {order.work}" if start.old else "pass --overwrite to drop it"
            raise UserError(
                f"--out {order.out} has an unfinished run with other inputs (changed: {_changes(order, note)}): "
                f"{drop}, or name another folder."
            )
    if order.work.exists():
        remove(order.work)
    order.work.mkdir(parents=True)
    started = time.time()
    begun = {"command": order.command, "inputs": order.inputs, "fingerprint": order.fingerprint}
    write_json(order.work / NOTE, {**begun, "started": started, "growing": start.old is not None})
    return started


def _taken_up(order: _Order, note: dict[str, Any]) -> float:
    """Say that an earlier run goes on; when it began, or now where its note does not say."""
    console.print(f"{order.work}: going on where an earlier run stopped", style="dim", soft_wrap=True)
    started, now = note.get("started"), time.time()
    return started if isinstance(started, int | float) and 0 <= started <= now else now


def _changes(order: _Order, record: dict[str, Any]) -> str:
    """The names of the inputs that differ from those of `record`; where none does, it is the seed."""
    return ", ".join(differences(record.get("inputs"), order.inputs)) or "seed"


def _build(order: _Order, start: _Start, build: Callable[[Path], dict[str, Any]]) -> None:
    """Fill the work folder; its provenance is written last, so that whoever finds it knows that all is there."""
    started, work = _open_work(order, start), order.work
    try:
        result = build(work)
    except UserError:
        if not any(file.is_file() and file.stat().st_size for file in work.rglob("*") if file.name != NOTE):
            remove(work)  # refused before any work was done: the mended command must not trip over it
        raise
    provenance = {
        "command": order.command,
        "inputs": order.inputs,
        "fingerprint": order.fingerprint,
        "seed": order.seed,
        **circumstances(started),
        **({"grown_from": {key: start.old.get(key) for key in GROWN_FROM}} if start.old else {}),
    }
    write_json(work / "result.json", result)
    write_json(work / PROVENANCE, provenance)


def _put_in_place(order: _Order) -> None:
    """Rename the finished work folder to `out`; what stood there is set aside first and deleted last."""
    work, aside = order.work, aside_of(order.out)
    for scratch in work.glob(".*"):
        shutil.rmtree(scratch) if scratch.is_dir() and not scratch.is_symlink() else scratch.unlink()
    if aside.exists():
        remove(aside)
    if order.out.exists():  # renamed whole: half of a folder would say no longer whose it is
        os.replace(order.out, aside)
    os.replace(work, order.out)
    if aside.exists():
        remove(aside)
