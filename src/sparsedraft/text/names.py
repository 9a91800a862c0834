"""Names of prompts: a file, the package's demo, or the id of a data set. Only the name is checked, nothing is read."""

import os
import re
from pathlib import Path

from sparsedraft.base.errors import UserError

DEMO = ("demo", "demo:train", "demo:eval")  # the package's own prompts
FILES = (".jsonl", ".json", ".parquet")


def file_of(source: str) -> Path | None:
    """The file that `source` names; None where it is the id of a data set. UserError where there is no such file."""
    path = Path(os.path.expanduser(source))  # Path.expanduser raises for a user that there is not
    if path.suffix not in FILES and not path.exists():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source.partition(":")[0]):
            raise UserError(
                f"prompts {source}: no such file, and it is not a datasets id of the form owner/name:split."
            )
        return None
    if not path.is_file():
        raise UserError(f"prompts {source}: there is no such file; check the path.")
    return path


def check_prompts(source: str) -> None:
    """Raise UserError unless `source` is a file that is there, the package's own prompts, or may be a data set's id."""
    if source not in DEMO:
        file_of(source)


def check_data(folder: Path) -> None:
    """Raise UserError where there is no such folder, be it of distilled data or not."""
    if not folder.is_dir():
        raise UserError(f"data {folder} is no distilled data folder: make one with 'sparsedraft distill'.")


def check_text(source: str) -> None:
    """As `check_prompts`, for options that also take a data folder."""
    if not Path(source).is_dir():
        check_prompts(source)
