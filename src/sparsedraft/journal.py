"""A journal of finished units of work: one JSON line each, appended as they finish, read back in any order.

Only the place of each line is kept in memory, so that a journal may be larger than it.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


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


def read_lines(path: Path) -> list[Any]:
    """The objects of a JSON-lines file that an interrupted run may have left."""
    whole_lines(path)
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


class Journal:
    """Rows by number of their unit, in the file `path`; what an interrupted run left there is taken up."""

    def __init__(self, path: Path) -> None:
        whole_lines(path)
        self.path = path
        self.places: dict[int, int] = {}  # byte at which each unit's line begins
        self.counts: dict[int, int] = {}  # its rows
        if path.exists():
            with open(path, "rb") as file:
                place = 0
                for line in file:
                    unit = json.loads(line)
                    self._note(unit["unit"], place, len(unit["rows"]))
                    place += len(line)

    def _note(self, number: int, place: int, rows: int) -> None:
        self.places[number], self.counts[number] = place, rows

    def __contains__(self, number: int) -> bool:
        return number in self.places

    def append(self, number: int, rows: Sequence[dict[str, Any]]) -> None:
        """Commit the rows of unit `number`; a unit that is there already stays as it is."""
        if number in self:
            return
        line = json.dumps({"unit": number, "rows": rows}, ensure_ascii=False).encode() + b"\n"
        with open(self.path, "ab") as file:
            place = file.seek(0, os.SEEK_END)
            file.write(line)
        self._note(number, place, len(rows))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row, by number of its unit; one unit in memory at a time."""
        if not self.places:
            return
        with open(self.path, "rb") as file:
            for number in sorted(self.places):
                file.seek(self.places[number])
                yield from json.loads(file.readline())["rows"]
