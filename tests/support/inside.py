"""The command line in this process, for tests that call it often."""

import sys

import pytest
import typer

from sparsedraft import cli

COMMANDS = typer.main.get_command(cli.app)  # made once: typer makes it at every call of the app


def call(patch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of `sparsedraft WORDS`; whatever would be a traceback is raised."""
    patch.setattr(cli, "app", COMMANDS)
    patch.setattr(sys, "argv", ["sparsedraft", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    assert isinstance(code, int | None)
    return code or 0
