"""A command of the command line from a class of options: its parameters, their help, bounds and defaults."""

import inspect
import os
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from sparsedraft.base.options import (
    Argument,
    Options,
    StageOptions,
    Text,
    fields_of,
    flag,
    limits,
    mark_of,
    nested_of,
)

StageClass = TypeVar("StageClass", bound=StageOptions)


def command(options: type[StageClass], work: Callable[[StageClass], object]) -> Callable[..., None]:
    """A function for typer that makes `options` from its parameters and hands them to `work`.

    Only what the user gave is handed to the class, whose own defaults stand for the rest. Files and models that do not
    exist are refused before `work` begins, which is what imports the libraries.
    """
    fields = fields_of(options)

    def run(context: typer.Context, **values: Any) -> None:
        texts = {name: value for name, value in values.items() if _given(context, name)}
        instance = options(**_values(options, texts))
        if os.environ.get("WORLD_SIZE", "1") == "1":  # of several, the stage lets one speak, and stops all
            instance.check_names()
        work(instance)

    order = sorted(fields, key=lambda name: (mark_of(fields[name], Argument) is None, not fields[name].is_required()))
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", keyword, annotation=typer.Context)]
    parameters += [
        inspect.Parameter(name, keyword, annotation=_type(name, fields[name]), default=_default(fields[name]))
        for name in order
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = work.__name__, work.__doc__
    return run


def _given(context: typer.Context, name: str) -> bool:
    """Whether the user gave the parameter, be it with the value that it has without."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _values(options: type[Options], texts: dict[str, Any]) -> dict[str, Any]:
    """What the user gave, as the fields' values, by the class that has the field."""
    arguments: dict[str, Any] = {}
    for name, field in options.model_fields.items():
        if nested := nested_of(field):
            if values := _values(nested, texts):
                arguments[name] = values
        elif name in texts:
            text = mark_of(field, Text)
            arguments[name] = text.read(texts[name]) if text is not None else texts[name]
    return arguments


def _type(name: str, field: FieldInfo) -> Any:
    """typer's annotation of a field."""
    kind = _plain(field.annotation)
    if (text := mark_of(field, Text)) is not None:
        kind = text.kind
    needed = field.is_required()
    if not needed and (_default(field) is None):
        kind = kind | None
    bounds = limits(field)
    shown: dict[str, Any] = {"min": bounds.get("ge"), "max": bounds.get("le")} if bounds.keys() <= {"ge", "le"} else {}
    if mark_of(field, Argument) is not None:
        return Annotated[kind, typer.Argument(help=field.description, **shown)]
    named = flag(name, field)
    if field.annotation is bool and field.default:
        named = f"{named}/--no-{named.removeprefix('--')}"
    return Annotated[kind, typer.Option(named, help=field.description, **shown)]


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return inspect.Parameter.empty
    default = field.get_default(call_default_factory=True)
    if (text := mark_of(field, Text)) is not None:
        return text.write(default)
    return None if isinstance(default, tuple | list | dict) else default


def _plain(annotation: Any) -> Any:
    """The type without None, a choice of texts as text, and several values as a list."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _plain(next(part for part in parts if part is not type(None)))
    if origin is Annotated:
        return _plain(parts[0])
    if origin is Literal:
        return str
    return list[parts[0]] if origin in (tuple, list) else annotation  # type: ignore[valid-type]
