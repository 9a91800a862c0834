"""The JSON files beside a checkpoint's weights and in our own folders: one reader, one sentence for what is wrong."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sparsedraft.base.errors import UserError, first_line

DEEPEST = 100  # levels
LARGEST = 1 << 28  # bytes: several times the largest tokenizer.json there is
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
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        if _deep(found):
            raise RecursionError
        return found
    except RecursionError:
        raise UserError(f"{path} cannot be read (nested too deep): {mend}.") from None
    except (OSError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(f"{path} cannot be read ({first_line(error)}): {mend}.") from None


def read_object(path: Path, mend: str = COPY) -> dict[str, Any]:
    """The same, of a file that must hold a JSON object."""
    found = read_json(path, mend)
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read (it holds {_name(found)}, not an object): {mend}.")
    return found


def read_as(path: Path, schema: type[Schema], mend: str = COPY) -> Schema:
    """The same, of a file whose format is our own: checked against `schema`; the first wrong field is named."""
    found = read_object(path, mend)
    try:
        return schema.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UserError(
            f"{path} cannot be read ({field}: {first['msg'].removeprefix('Value error, ')}): {mend}."
        ) from None


def _deep(value: object) -> bool:
    """Whether it is nested deeper than DEEPEST, so that whatever walks it need not fear for its stack."""
    level: list[Any] = [value] if _holds(value) else []
    for _ in range(DEEPEST):
        if not level:
            return False
        parts = (item.values() if isinstance(item, dict) else item for item in level)
        level = [part for items in parts for part in items if _holds(part)]
    return bool(level)


def _holds(value: object) -> bool:
    return isinstance(value, dict | list)


def dumps(value: object, indent: int | None = None) -> str:
    """`value` as JSON to be read by people, too: escaped only where it has what UTF-8 cannot hold, as some paths do."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def _name(value: object) -> str:
    """What JSON calls a value of this type."""
    names = {bool: "true or false", list: "an array", str: "a string", type(None): "null"}
    return names.get(type(value), "a number")
