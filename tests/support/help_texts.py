"""The whole command line as plain text: what `--help` says of every command, without frames and line breaks."""

import re
from pathlib import Path

import pytest
from typer import rich_utils
from typer.main import get_command
from typer.testing import CliRunner

from sparsedraft import cli

FILE = Path(__file__).parents[1] / "cli" / "help.txt"
WIDE = 2000  # columns, so that each option stands in one line


def written() -> str:
    """The `--help` of the program and of each command, an option a line."""
    names = sorted(get_command(cli.app).commands)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rich_utils, "MAX_WIDTH", WIDE)
        patch.setattr(rich_utils, "COLOR_SYSTEM", None)
        shown = [CliRunner().invoke(cli.app, [*words, "--help"]).output for words in ([], *([name] for name in names))]
    return "\n".join(map(_plain, shown))


def _plain(text: str) -> str:
    """`text` without the frames around its tables, its columns two spaces apart."""
    lines = (re.sub(r" {2,}", "  ", re.sub("[─│╭╮╰╯]", "", line).strip()) for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line)
