"""What the studies share: the same conditions, rows that stay in a file, and the closing line."""

import json
from pathlib import Path
from typing import Any

import torch

from sparsedraft.base.console import console, quiet_libraries
from sparsedraft.base.journal import read_lines

ROOT = Path(__file__).parent.parent


def setup(threads: int = 2) -> None:
    """The same conditions for every study."""
    quiet_libraries()
    torch.set_num_threads(threads)
    torch.manual_seed(0)


class Rows:
    """The rows of a study in FOLDER/rows.jsonl: an interrupted study goes on after the last of them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "rows.jsonl"
        self.rows: list[dict[str, Any]] = read_lines(self.file)

    def lack(self, label: str) -> bool:
        """Whether no row has this label."""
        return all(row["label"] != label for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Append `row`, on disk too, and print it without the figures of single answers."""
        self.rows.append(row)
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        console.print({name: value for name, value in row.items() if name != "answers"})


def close(rows: list[dict[str, Any]]) -> None:
    """The rows as the last line on stdout."""
    print(json.dumps({"rows": rows}), flush=True)
