"""Pages that the build of the site writes: one a command, from the command's own options; the modules; the changelog.

A hook of mkdocs (see mkdocs.yml). Nothing it writes is stored in the repository, so no page can lag behind its command.
"""

import ast
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sparsedraft.cli import app

ROOT = Path(__file__).resolve().parents[2]
TYPES = {"TEXT": "text", "str": "text", "int": "whole number", "float": "number", "Path": "path", "bool": "switch"}


def commands() -> dict[str, Any]:
    """The commands by name, in the order of `sparsedraft --help`."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page for each command into the navigation."""
    pages: list[Any] = [{"All commands": "commands/index.md"}]
    pages += [{name: f"commands/{name}.md"} for name in commands()]
    for entry in config.nav or []:
        if "Commands" in entry:
            entry["Commands"] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the written pages to those that lie in docs/."""
    written = {f"commands/{name}.md": command_page(name, command) for name, command in commands().items()}
    written["commands/index.md"] = index_page()
    written["modules.md"] = modules_page()
    written["records.md"] = records_page()
    written["changelog.md"] = changelog()
    for path, text in written.items():
        files.append(File.generated(config, path, content=text))
    return files


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
    rows = [f"| [{name}]({name}.md) | {cell(command.help or '')} |" for name, command in commands().items()]
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


def command_page(name: str, command: Any) -> str:
    """The page of one command: how to call it, its arguments, its options."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
    words = [f"{(p.metavar or p.name).upper()}" + (" ..." if p.nargs == -1 else "") for p in arguments]
    words = [word if p.required else f"[{word}]" for word, p in zip(words, arguments, strict=True)]
    needed = [f"{p.opts[0]} {p.name.upper()}" for p in options if p.required]
    call = " ".join(["sparsedraft", name, *words, *needed, "[OPTIONS]" if options else ""]).strip()
    out = [f"# {name}", "", command.help or "", "", "```", call, "```", ""]
    if arguments:
        out += ["| argument | meaning |", "| --- | --- |"]
        out += [f"| `{(p.metavar or p.name).upper()}` | {cell(getattr(p, 'help', None) or '')} |" for p in arguments]
        out += [""]
    if options:
        out += ["| option | takes | default | bounds | meaning |", "| --- | --- | --- | --- | --- |"]
        out += [option_row(p) for p in options]
    return "\n".join([*out, ""])


def option_row(p: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*p.opts, *p.secondary_opts))
    return f"| {names} | {kind(p)} | {default(p)} | {bounds(p)} | {cell(p.help or '')} |"


def kind(p: Any) -> str:
    """What an option takes, in a word."""
    if getattr(p, "is_flag", False):
        return "nothing"
    annotation = getattr(getattr(p, "type_descriptor", None), "annotation", None)
    name = getattr(annotation, "__name__", None) or getattr(getattr(p, "type", None), "name", "text")
    return TYPES.get(name, TYPES.get(name.upper(), name)) + (", repeatable" if p.multiple else "")


def default(p: Any) -> str:
    if p.required:
        return "required"
    if p.default in (None, False, (), []) or callable(p.default):
        return "off" if getattr(p, "is_flag", False) else "none"
    return f"`{p.default}`"


def bounds(p: Any) -> str:
    """The smallest and the largest value, where the option has them."""
    low, high = getattr(p, "min", None), getattr(p, "max", None)
    if low is None and high is None:
        return ""
    return f"{'' if low is None else f'{low:g}'} to {'' if high is None else large(high)}".strip()


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
