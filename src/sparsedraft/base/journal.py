"""A journal of finished units of work: one JSON line each, appended as they finish, read back in any order.

A unit is a few conversations, and each of these is known by a key that says all of what was asked: so what is finished
stands whatever else is asked beside it later. Only the place of each is kept in memory, which a journal may exceed.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparsedraft.base.console import console

OPEN = 8  # lines that are kept read: conversations of one line are mostly asked for one after the other


def whole_lines(path: Path) -> None:
    """Cut a line that was torn by a kill off the end of a JSON-lines file."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = position = file.seek(0, os.SEEK_END)
        while position:
            step = min(position, 1 << 16)
            position -= step
            file.seek(position)
            if (found := file.read(step).rfind(b"\n")) >= 0:
                end = position + found + 1
                break
        else:
            end = 0
        file.truncate(end)


def read_lines(path: Path, needed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file that an interrupted run may have left, each with the fields `needed`."""
    found: list[dict[str, Any]] = []

    def take(line: dict[str, Any], place: int) -> None:
        if not all(name in line for name in needed):
            raise KeyError
        found.append(line)

    _take(path, take)
    return found


def _take(path: Path, take: Callable[[dict[str, Any], int], None]) -> None:
    """`take` the object of every line, and its first byte; from one on that cannot be taken the file is cut."""
    whole_lines(path)
    if not path.exists():
        return
    place = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                take(json.loads(line), place)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                console.print(f"{path} is damaged behind byte {place}: what it had there is made again", soft_wrap=True)
                break
            place += len(line)
        else:
            return
    os.truncate(path, place)


class Journal:
    """Rows by the key of their conversation, in the file `path`; what an interrupted run left there is taken up.

    A line holds a unit's rows and, under "keys", the key of each of its conversations by id: that is a row's
    "prompt_id". Conversations of which a row was dropped for the reason `again` count as not finished. A line without
    "keys", as earlier versions wrote them, is of those conversations whose keys by id are in `unnamed`.
    """

    def __init__(self, path: Path, again: str = "", unnamed: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._places: dict[str, tuple[int, str, int]] = {}  # line's first byte, id, rows
        self._read = lru_cache(OPEN)(self._line)
        keys = unnamed or {}

        def take(unit: dict[str, Any], place: int) -> None:
            held = {row["prompt_id"] for row in unit["rows"]}
            named = unit.get("keys", {name: key for name, key in keys.items() if name in held})
            self._note(named, unit["rows"], place, again)

        _take(path, take)

    def _note(self, keys: Mapping[str, str], rows: Sequence[Mapping[str, Any]], place: int, again: str = "") -> None:
        left = {row["prompt_id"] for row in rows if again and row.get("dropped") == again}
        counts = Counter(row["prompt_id"] for row in rows)
        for name, key in keys.items():
            if name not in left:
                self._places[key] = (place, name, counts[name])

    def _line(self, place: int) -> list[dict[str, Any]]:
        with open(self.path, "rb") as file:
            file.seek(place)
            rows: list[dict[str, Any]] = json.loads(file.readline())["rows"]
            return rows

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        """How many conversations are finished."""
        return len(self._places)

    def count(self, key: str) -> int:
        """How many rows there are of a conversation."""
        return self._places[key][2] if key in self else 0

    def append(self, keys: Mapping[str, str], rows: Sequence[dict[str, Any]]) -> None:
        """Commit the rows of a unit, whose conversations have these `keys` by id; what is there already stays."""
        keys = {name: key for name, key in keys.items() if key not in self}
        if not keys:
            return
        line = json.dumps({"keys": keys, "rows": rows}, ensure_ascii=False).encode() + b"\n"
        with open(self.path, "ab") as file:
            place = file.seek(0, os.SEEK_END)
            file.write(line)
        self._note(keys, rows, place)

    def rows(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Every row of these conversations, in this order; those that are not there are left out."""
        for key in keys:
            if key in self:
                place, name, _ = self._places[key]
                yield from (row for row in self._read(place) if row["prompt_id"] == name)
