"""Artifacts without what a clock says, to be compared."""

import json
from pathlib import Path
from typing import Any

CLOCKED = {"first", "reading", "measured", "speedup", "seconds", "draft", "verify", "rollback", "sampling", "rest"}


def clockless(file: Path) -> Any:
    """The JSON (lines) of `file` without what a clock says."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in CLOCKED}
        return [plain(v) for v in value] if isinstance(value, list) else value

    return [
        plain(json.loads(text))
        for text in (file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()])
    ]
