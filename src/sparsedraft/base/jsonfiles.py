"""JSON files, beside a checkpoint's weights and in our own folders: one reader, and one sentence for what is wrong."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sparsedraft.base.errors import UserError, first_line
from sparsedraft.base.files import write_atomic

DEEPEST = 100  # levels
LARGEST = 1 << 28  # bytes: several times the largest tokenizer.json that exists
COPY = "copy or download it again"

Schema = TypeVar("Schema", bound=BaseModel)


def read_json(path: Path, mend: str = COPY) -> Any:
    """What the JSON file `path` holds.

    UserError, in one sentence that ends with `mend`, for a file that is not there, not UTF-8, not JSON, nested too
    deep, or larger than LARGEST.
    """
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise UserError(f"{path} has {size:,} bytes, more than any such file needs: {mend}.")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        if _deep(value):
            raise RecursionError
        return value
    except RecursionError:
        raise UserError(f"{path} cannot be read (nested too deep): {mend}.") from None
    except (OSError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(f"{path} cannot be read ({first_line(error)}): {mend}.") from None


def read_object(path: Path, mend: str = COPY) -> dict[str, Any]:
    """What `read_json` reads, from a file that must hold a JSON object."""
    value = read_json(path, mend)
    if not isinstance(value, dict):
        raise UserError(f"{path} cannot be read (it holds {_name(value)}, not an object): {mend}.")
    return value


def read_as(path: Path, schema: type[Schema], mend: str = COPY) -> Schema:
    """The object in a file of our own format, checked against `schema`; UserError names the first wrong field."""
    value = read_object(path, mend)
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UserError(
            f"{path} cannot be read ({field}: {first['msg'].removeprefix('Value error, ')}): {mend}."
        ) from None


def _deep(value: object) -> bool:
    """Whether `value` is nested deeper than DEEPEST; what is not can be walked by recursion."""
    level: list[Any] = [value] if _is_container(value) else []
    for _ in range(DEEPEST):
        if not level:
            return False
        parts = (item.values() if isinstance(item, dict) else item for item in level)
        level = [part for items in parts for part in items if _is_container(part)]
    return bool(level)


def _is_container(value: object) -> bool:
    return isinstance(value, dict | list)


def dumps(value: object, indent: int | None = None) -> str:
    """`value` as JSON that people can read: escaped only where it has what UTF-8 cannot hold, as some paths do."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def write_json(path: Path, obj: object) -> None:
    """Write `obj` as indented JSON, atomically."""
    with write_atomic(path) as temporary:
        temporary.write_text(dumps(obj, indent=1) + "\n", encoding="utf-8")


def _name(value: object) -> str:
    """What JSON calls a value of this type."""
    names = {bool: "true or false", list: "an array", str: "a string", type(None): "null"}
    return names.get(type(value), "a number")
