"""Greedy options of a small evaluation, and the rows that it wrote."""

import json
from pathlib import Path

GREEDY = {"k": [1, 3, 8], "max_new_tokens": 16, "limit": 10, "batch_size": 4}


def whole(folder: Path) -> list[dict]:
    """The rows of the drafters."""
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def raw(folder: Path) -> list[dict]:
    """The same, without times."""
    return [{k: v for k, v in row.items() if k not in ("loops", "alone", "reading")} for row in whole(folder)]
