"""Pages that the build of the site writes: one a command, from the command's own options; the modules; the changelog.

A hook of mkdocs (see mkdocs.yml). Nothing it writes is stored in the repository, so no page can lag behind its command.
"""

import ast
import inspect
import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic.fields import FieldInfo

from sparsedraft.base.options import Options, Text, fields_of, flag, limits, mark_of
from sparsedraft.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
TYPES = {str: "text", int: "whole number", float: "number", Path: "path", dict: "name=value"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page for each command into the navigation."""
    pages: list[Any] = [{"All commands": "commands/index.md"}]
    pages += [{name: f"commands/{name}.md"} for name in COMMANDS]
    for entry in config.nav or []:
        if "Commands" in entry:
            entry["Commands"] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the written pages to those that lie in docs/."""
    written = {f"commands/{name}.md": command_page(name, *command) for name, command in COMMANDS.items()}
    written["commands/index.md"] = index_page()
    written["modules.md"] = modules_page()
    written["records.md"] = records_page()
    written["changelog.md"] = changelog()
    for path, text in written.items():
        files.append(File.generated(config, path, content=text))
    return files


def sentence(work: Callable[..., object]) -> str:
    """The first line of what a command says of itself."""
    return (inspect.getdoc(work) or "").partition("\n")[0]


def changelog() -> str:
    file = ROOT / "CHANGELOG.md"
    return file.read_text(encoding="utf-8") if file.is_file() else "# Changelog\n\nNo version is released yet.\n"


def modules_page() -> str:
    """Every module with the first sentence of its docstring, a table for each folder."""
    source = ROOT / "src" / "sparsedraft"
    out = ["# Modules", "", "Every Python module of `src/sparsedraft`, with its own first sentence.", ""]
    modules = sorted(file.relative_to(source) for file in source.rglob("*.py") if file.name != "__init__.py")
    for folder, files in groupby(sorted(modules, key=lambda file: (file.parent, file)), key=lambda file: file.parent):
        out += [f"## {'sparsedraft' if folder == Path() else folder}", "", "| module | what it is |", "| --- | --- |"]
        out += [f"| `{file.name}` | {cell(first_sentence(source / file))} |" for file in files] + [""]
    return "\n".join(out)


def records_page() -> str:
    """The rows of every stored benchmark, newest first."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in (ROOT / "benchmarks" / "results").glob("*.json")]
    out = [
        "# Records of speed",
        "",
        "Every record in `benchmarks/results`, newest first. A ratio is better when it is larger.",
        "",
    ]
    for record in sorted(found, key=lambda record: (record["date"], record["benchmark"]), reverse=True):
        machine = record["machine"]
        out += [f"## {record['date']} · {record['benchmark']}", "", "```", record["command"], "```", ""]
        out += [f"{machine['cpus']} CPUs, {machine['cpu']}; commit {record['commit']}.", ""]
        out += ["| row | ratio | goal | reached |", "| --- | ---: | ---: | --- |"]
        for row in record["rows"]:
            reached = "yes" if row["ratio"] >= row["goal"] else "no"
            out.append(f"| {cell(row['name'])} | {row['ratio']:.2f} | {row['goal']:g} | {reached} |")
        out.append("")
    return "\n".join(out)


def first_sentence(file: Path) -> str:
    """The first paragraph of a module's docstring."""
    told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(told.partition("\n\n")[0].split())


def index_page() -> str:
    rows = [f"| [{name}]({name}.md) | {cell(sentence(work))} |" for name, (_, work) in COMMANDS.items()]
    return "\n".join(
        [
            "# Commands",
            "",
            "Every command shows its progress on stderr, prints a table where there is one, and ends with one JSON "
            "object as the last line on stdout.",
            "",
            "| exit code | meaning |",
            "| --- | --- |",
            "| 0 | done, or done already |",
            "| 2 | a mistake in what you gave: one sentence names the field, its value and the mend |",
            "| 1 | a fault of the program |",
            "",
            "A finished command that is given again does nothing and says so. An interrupted one goes on where it was.",
            "",
            "| command | what it does |",
            "| --- | --- |",
            *rows,
            "",
        ]
    )


def command_page(name: str, options: type[Options], work: Callable[..., object]) -> str:
    """The page of one command, from the class of its options: how to call it, its arguments, its options."""
    fields = {flag(field_name, field): field for field_name, field in fields_of(options).items()}
    arguments = {shown: field for shown, field in fields.items() if not shown.startswith("--")}
    named = {shown: field for shown, field in fields.items() if shown.startswith("--")}
    call = [word(shown, field) for shown, field in arguments.items()]
    call += [f"{shown} {shown.removeprefix('--').upper()}" for shown, field in named.items() if field.is_required()]
    out = [
        f"# {name}",
        "",
        inspect.getdoc(work) or "",
        "",
        "```",
        f"sparsedraft {name} {' '.join(call)} [OPTIONS]",
        "```",
    ]
    if arguments:
        out += ["", "| argument | meaning |", "| --- | --- |"]
        out += [f"| `{shown}` | {cell(field.description or '')} |" for shown, field in arguments.items()]
    out += ["", "| option | takes | default | bounds | meaning |", "| --- | --- | --- | --- | --- |"]
    out += [option_row(shown, field) for shown, field in named.items()]
    return "\n".join([*out, ""])


def word(shown: str, field: FieldInfo) -> str:
    """An argument as it stands in a call."""
    several = f"{shown} ..." if get_origin(plain(field)) is tuple else shown
    return several if field.is_required() else f"[{several}]"


def option_row(shown: str, field: FieldInfo) -> str:
    cells = (f"`{shown}`", takes(field), default(field), bounds(field), cell(field.description or ""))
    return f"| {' | '.join(cells)} |"


def plain(field: FieldInfo) -> Any:
    """The type of a field's values, without None."""
    kind = field.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def takes(field: FieldInfo) -> str:
    """What the command line takes for a field."""
    kind, text = plain(field), mark_of(field, Text)
    if kind is bool:
        return "nothing: a switch"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if text is not None:
        kind = text.kind
    if get_origin(kind) in (tuple, list):
        return f"{TYPES.get(get_args(kind)[0], 'text')}, as often as you like"
    return TYPES.get(get_origin(kind) or kind, "text")


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value, text = field.get_default(call_default_factory=True), mark_of(field, Text)
    if text is not None:
        value = text.write(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None or value in ((), {}) else f"`{value}`"


def bounds(field: FieldInfo) -> str:
    """The smallest and the largest value, where the field has them."""
    found = limits(field)
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return ", ".join(f"{sign} {large(found[key])}" for key, sign in signs.items() if key in found)


def large(number: float) -> str:
    """A bound as it is easiest to read: powers of two as such."""
    whole = int(number)
    if whole == number and whole >= 1 << 16:
        for text, value in ((f"2^{whole.bit_length() - 1}", 1 << (whole.bit_length() - 1)), ("2^63 - 1", 2**63 - 1)):
            if whole == value:
                return text
    return f"{number:,}"


def cell(text: str) -> str:
    """Text that stands in a cell of a table as it is."""
    text = " ".join(text.split())
    for sign in "\\`*_<[]|":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text
