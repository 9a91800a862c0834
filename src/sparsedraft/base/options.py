"""The options of a stage, written once: type, bounds, default and help text stand with the field that they are of.

A stage has one class of them. Its fields become the command's parameters (`base.command`), the recipe's section and the
one argument of the stage's function, so that a new option is one line in one file. What only some options need is a
mark in the field's `Annotated` type: `Argument`, `Flag`, `Text`, `Exists`.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from sparsedraft.base.errors import UserError

Mark = TypeVar("Mark")


@dataclass(frozen=True)
class Argument:
    """The command line takes this field by its place instead of a name."""


@dataclass(frozen=True)
class Flag:
    """The name of the field on the command line, where that is not `--` and the field's own."""

    name: str


@dataclass(frozen=True)
class Text:
    """How the command line gives a field whose type it does not have: as `kind`, from which `read` makes the value.

    `write` makes from the default what the help shows as such.
    """

    kind: Any
    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = lambda value: None


@dataclass(frozen=True)
class Exists:
    """`check` raises UserError where there is nothing of the name that the field holds."""

    check: Callable[[Any], object]


class Options(BaseModel):
    """Some options: unknown names are errors, and values do not change.

    A check between fields raises ValueError with the names of fields as `<name>`. The command line shows them as
    `--name`, a recipe as `name`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def part(self, kind: "type[Options]") -> dict[str, Any]:
        """The values of the fields that `kind` has, too."""
        return {name: getattr(self, name) for name in kind.model_fields}


class StageOptions(Options):
    """All options of a stage. Whoever makes them gets a UserError for what is wrong, in the command line's words.

    The options of a group, such as the rules of distill, may also stand beside the others, as on the command line.
    """

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**_grouped(type(self), {name: _without_path(value) for name, value in values.items()}))
        except ValidationError as error:
            raise UserError(sentence(type(self), error)) from None

    def check_names(self) -> None:
        """Raise UserError where a file, folder or model that an option names does not exist."""
        for name, field in type(self).model_fields.items():
            mark, value = mark_of(field, Exists), getattr(self, name)
            if mark is not None and value is not None:
                for item in value if isinstance(value, tuple) else (value,):
                    mark.check(item)


def _without_path(value: Any) -> Any:
    """A path, or each path of several, as text: pydantic makes a path of it again where the field is one."""
    if isinstance(value, PurePath):
        return str(value)
    return [_without_path(item) for item in value] if isinstance(value, list | tuple) else value


def _grouped(options: type[Options], values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the options of each group in their group."""
    found = dict(values)
    for name, field in options.model_fields.items():
        group = nested_of(field)
        members = {key: found.pop(key) for key in group.model_fields if key in found} if group else {}
        if members:
            whole = found.get(name, {})
            found[name] = (whole.model_dump() if isinstance(whole, Options) else whole) | members
    return found


def mark_of(field: FieldInfo, kind: type[Mark]) -> Mark | None:
    """The mark of this kind that the field bears."""
    return next((mark for mark in field.metadata if isinstance(mark, kind)), None)


def fields_of(options: type[Options]) -> dict[str, FieldInfo]:
    """Every field by name; in the place of one that holds options itself, those."""
    fields: dict[str, FieldInfo] = {}
    for name, field in options.model_fields.items():
        fields |= fields_of(nested) if (nested := nested_of(field)) else {name: field}
    return fields


def nested_of(field: FieldInfo) -> type[Options] | None:
    """The class of options that the field holds, if it does."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Options) else None


def flag(name: str, field: FieldInfo) -> str:
    """What the command line calls a field: `--its-name`, or `ITS_NAME` for an argument."""
    if mark_of(field, Argument) is not None:
        return name.upper()
    mark = mark_of(field, Flag)
    return mark.name if mark is not None else f"--{name.replace('_', '-')}"


def limits(field: FieldInfo) -> dict[str, Any]:
    """The field's bounds: ge, gt, le and lt, as far as it has them."""
    pairs = ((key, getattr(part, key, None)) for part in field.metadata for key in ("ge", "gt", "le", "lt"))
    return {key: bound for key, bound in pairs if bound is not None}


def sentence(options: type[Options], error: ValidationError) -> str:
    """The first complaint of pydantic as one sentence, with the names of the command line."""
    first, fields = error.errors()[0], fields_of(options)
    name = next((str(part) for part in reversed(first["loc"]) if part in fields), "")
    if first["type"] == "extra_forbidden":
        unknown = str(first["loc"][-1])
        return f"{unknown} is not a known option{_suggestion(unknown, fields)}"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        return re.sub(r"<(\w+)>", lambda m: flag(m[1], fields[m[1]]) if m[1] in fields else m[1], message) + "."
    if not name:
        return f"{options.__name__}: {first['msg'][0].lower()}{first['msg'][1:]}."
    what, value = flag(name, fields[name]), first["input"]
    if first["type"] == "missing":
        return f"{what} is missing: set it."
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    if first["type"] == "literal_error":
        choices = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"{what} {shown} is not known: choose one of {choices}."
    if first["type"] == "finite_number":
        return f"{what} {shown} is not possible: give a finite number."
    if (span := _span(limits(fields[name]))) and isinstance(value, int | float):
        return f"{what} {shown} is not possible: give {span}."
    return f"{what} {shown} is not possible: {in_words(first)}."


def in_words(complaint: Any) -> str:
    """What pydantic says of a value, without Python's words for lists."""
    if complaint["type"] == "tuple_type":
        return "give a list"
    if complaint["type"] == "too_short":
        return "give at least one"
    message = complaint["msg"].removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}"


def _suggestion(unknown: str, names: Any) -> str:
    near = difflib.get_close_matches(unknown, names, n=1)
    return f"; did you mean {near[0]}?" if near else "; take it out."


def _span(bounds: dict[str, Any]) -> str:
    """`bounds` in words."""
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None:
        return f"{low} to {high}" if {"ge", "le"} <= bounds.keys() else _open(bounds, low, high)
    if low is not None:
        return f"{low} or more" if "ge" in bounds else f"more than {low}"
    return "" if high is None else f"at most {high}" if "le" in bounds else f"less than {high}"


def _open(bounds: dict[str, Any], low: Any, high: Any) -> str:
    if {"gt", "lt"} <= bounds.keys():
        return f"a number between {low} and {high}"
    return f"more than {low} and at most {high}" if "gt" in bounds else f"{low} or more, and less than {high}"


def words(text: str) -> tuple[str, ...]:
    """The words of a comma-separated list."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


Words = Text(str, words, lambda found: None if found is None else ",".join(found))  # a comma-separated list
