"""A journal of finished units of work: one JSON line each, appended as they finish, read back in any order.

A unit is a few conversations. The key of a conversation is made from everything that is asked in it, so a finished one
stays finished whatever else is asked later. Memory holds only the place of each; a journal may be larger than memory.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparsedraft.base.console import console

LINES = 8  # that stay in memory: conversations of one line are mostly asked for one after the other


def _cut_torn_line(path: Path) -> None:
    """Cut off the last line of a JSON-lines file where a kill left it unfinished."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = position = file.seek(0, os.SEEK_END)
        while position:
            step = min(position, 1 << 16)
            position -= step
            file.seek(position)
            if (newline := file.read(step).rfind(b"\n")) >= 0:
                end = position + newline + 1
                break
        else:
            end = 0
        file.truncate(end)


def read_lines(path: Path, needed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, up to the first that is damaged or lacks one of the fields `needed`.

    An interrupted run may have left the file: what cannot be read is cut off, with a remark.
    """
    objects: list[dict[str, Any]] = []

    def take(line: dict[str, Any], place: int) -> None:
        if not all(name in line for name in needed):
            raise KeyError
        objects.append(line)

    _take(path, take)
    return objects


def _take(path: Path, take: Callable[[dict[str, Any], int], None]) -> None:
    """`take` the object of every line and the place of its first byte; the file ends before the first that fails."""
    _cut_torn_line(path)
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
    """Rows by the key of their conversation, in the file `path`, which an interrupted run may have left.

    A line holds the rows of a unit and, under "keys", the key of each of its conversations by id; the id is a row's
    "prompt_id". A conversation with a row that was dropped for the reason `again` counts as not finished. Earlier
    versions wrote lines without "keys": `unnamed` has the keys of their conversations by id.
    """

    def __init__(self, path: Path, again: str = "", unnamed: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._places: dict[str, tuple[int, str, int]] = {}  # line's first byte, id, rows
        self._read = lru_cache(LINES)(self._line)
        keys = unnamed or {}

        def take(unit: dict[str, Any], place: int) -> None:
            ids = {row["prompt_id"] for row in unit["rows"]}
            keys_by_id = unit.get("keys", {name: key for name, key in keys.items() if name in ids})
            self._note(keys_by_id, unit["rows"], place, again)

        _take(path, take)

    def _note(self, keys: Mapping[str, str], rows: Sequence[Mapping[str, Any]], place: int, again: str = "") -> None:
        unfinished = {row["prompt_id"] for row in rows if again and row.get("dropped") == again}
        counts = Counter(row["prompt_id"] for row in rows)
        for name, key in keys.items():
            if name not in unfinished:
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
        """Commit the rows of a unit with the `keys` of its conversations by id; what is there already stays."""
        keys = {name: key for name, key in keys.items() if key not in self}
        if not keys:
            return
        line = json.dumps({"keys": keys, "rows": rows}, ensure_ascii=False).encode() + b"\n"
        with open(self.path, "ab") as file:
            place = file.seek(0, os.SEEK_END)
            file.write(line)
        self._note(keys, rows, place)

    def rows(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Every row of these conversations, in the order of `keys`; conversations that are not there are left out."""
        for key in keys:
            if key in self:
                place, name, _ = self._places[key]
                yield from (row for row in self._read(place) if row["prompt_id"] == name)
