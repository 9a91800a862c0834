"""`sparsedraft` as a process of its own, to be stopped half-way."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving import ENVIRONMENT


def start(out: Path, *words: object, **environment: str) -> subprocess.Popen:
    """Start `sparsedraft WORDS --out OUT`; what it says goes to the files OUT.stdout and OUT.stderr."""
    command = [sys.executable, "-c", "from sparsedraft.cli import main; main()", *map(str, words), "--out", str(out)]
    with open(f"{out}.stdout", "w") as said, open(f"{out}.stderr", "w") as told:
        return subprocess.Popen(command, stdout=said, stderr=told, env=ENVIRONMENT | environment)


def ended(process: subprocess.Popen, out: Path, code: int = 0) -> tuple[str, str]:
    """What it wrote to stdout and stderr, after it ended with `code`."""
    found = process.wait(timeout=300)
    said, told = (Path(f"{out}.{name}").read_text() for name in ("stdout", "stderr"))
    assert found == code, told[-3000:]
    return said, told


def units_so_far(out: Path) -> int:
    """Units of work that are committed."""
    journal = out.parent / f".{out.name}.partial" / ".rows.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_until(there: Callable[[], Any], process: subprocess.Popen, out: Path) -> Any:
    """The first true value of `there`, while the process runs."""
    for _ in range(6000):
        if found := there():
            return found
        assert process.poll() is None, Path(f"{out}.stderr").read_text()[-3000:]
        time.sleep(0.02)
    raise AssertionError("it never came")
