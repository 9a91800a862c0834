"""Records of files and data sets, one at a time: a file may be larger than memory, and single records damaged."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sparsedraft.base.errors import UserError, first_line
from sparsedraft.text.names import file_of

LONGEST = 16 << 20  # bytes of a row: some four million tokens, several times the longest context
CHUNK = 1 << 20


class TooLong(ValueError):
    """A record of more than LONGEST bytes."""


def read(source: str) -> Iterator[tuple[str, Any]]:
    """(where, record) of each record of `source`: JSON lines, a JSON array, a parquet file, or a `datasets` id.

    For a line that is not JSON, or too long, the record is the ValueError or RecursionError. UserError where the source
    as a whole cannot be read.
    """
    path = file_of(source)
    if path is None:
        return _dataset(source)
    return _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with open(path, "rb") as file:
            yield from _items(file, path) if _is_array(path) else _lines(file)
    except UnicodeDecodeError:
        raise UserError(f"prompts {path} is not UTF-8 text: save it as UTF-8 JSON lines.") from None
    except OSError as error:
        raise UserError(f"prompts {path} cannot be read ({first_line(error)}).") from None


def _is_array(path: Path) -> bool:
    """Whether the file is one array, not JSON lines whose first line is an array."""
    with open(path, "rb") as file:
        first = file.readline(CHUNK)
        while first and not first.removeprefix(codecs.BOM_UTF8).strip():
            first = file.readline(CHUNK)
        if not first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            return False
        closed = first.endswith(b"\n") and first.rstrip().endswith(b"]")
        return not (closed and file.readline(CHUNK).strip())


def _lines(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """JSON lines. Only a line feed ends one: U+2028 may stand inside a string."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        where = f"line {number}"
        if len(line) > LONGEST:
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK)
            yield where, TooLong()
            continue
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        if text.strip():
            try:
                yield where, json.loads(text)
            except (ValueError, RecursionError) as error:  # or a number of thousands of digits, or thousands of levels
                yield where, error


def _items(file: BinaryIO, path: Path) -> Iterator[tuple[str, Any]]:
    """The items of one JSON array. UserError for a damaged item, since its end cannot be found."""
    text, number = _Text(file), 0
    text.next()
    text.at += 1  # the bracket
    while (sign := text.next()) != "]":
        number += 1
        try:
            if number > 1:
                if sign != ",":
                    raise ValueError("no comma before it" if sign else "the array has no end")
                text.at += 1
            value = text.value()
        except (ValueError, RecursionError) as error:
            if isinstance(error, UnicodeDecodeError):
                raise
            why = getattr(error, "msg", first_line(error))
            raise UserError(f"prompts {path}, item {number}: not JSON ({why}): mend it, or save JSON lines.") from None
        yield f"item {number}", value
    text.at += 1  # the bracket
    if text.next():
        raise UserError(f"prompts {path}: more stands behind the end of its array: mend it, or save JSON lines.")


class _Text:
    """The text of a file; only as much is in memory as one value needs."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.text, self.at = file, "", 0
        self.utf8, self.json = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        chunk = self.file.read(CHUNK)
        self.text, self.at = self.text[self.at :] + self.utf8.decode(chunk, final=not chunk), 0
        return bool(chunk)

    def next(self) -> str:
        """Move to the next character that is not white space, and return it; "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\r\n":
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def value(self) -> Any:
        """Read the next JSON value and move past it. ValueError or RecursionError if there is none."""
        self.next()
        while True:
            try:
                value, end = self.json.raw_decode(self.text, self.at)
            except ValueError:
                if len(self.text) - self.at > LONGEST:
                    raise TooLong(f"more than {LONGEST:,} characters") from None
                if not self.more():
                    raise
                continue
            if end < len(self.text) or not self.more():  # at the end of the text a number may continue
                self.at = end
                return value


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"prompts {path} is not a readable parquet file ({first_line(error)}).") from None


def _dataset(source: str) -> Iterator[tuple[str, Any]]:
    name, _, split = source.partition(":")
    from datasets import load_dataset

    try:
        found = load_dataset(name, split=split or "train")
    except Exception as error:  # the library raises its own, the hub's and requests' errors alike
        reason = first_line(error)
        raise UserError(
            f"prompts {source}: no such file, and no data set of that id can be loaded ({reason})."
        ) from None
    return ((f"row {n}", dict(row)) for n, row in enumerate(found, 1))
