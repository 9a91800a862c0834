"""`sparsedraft` as a process of its own, to be stopped half-way."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forks import Fork
from transformers_server import ENVIRONMENT

GREEDY = {"RAY_worker_niceness": "0"}  # else Ray's workers give way to all else, and on a busy machine never come up
NOTHING: Mapping[str, str] = {}
PATIENCE = 300  # seconds, for machines that are busy with other things


@contextmanager
def running(out: Path, *words: object, env: Mapping[str, str] = NOTHING) -> Iterator[Fork]:
    """`sparsedraft WORDS --out OUT` at work with `env` besides, killed at the end; it says what it says to OUT.stdout
    and OUT.stderr."""
    stdout, stderr = Path(f"{out}.stdout"), Path(f"{out}.stderr")
    stdout.write_text("")
    stderr.write_text("")
    process = Fork(*words, "--out", out, stdout=stdout, stderr=stderr, env={**ENVIRONMENT, **GREEDY, **env})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run(out: Path, *words: object, code: int = 0, env: Mapping[str, str] = NOTHING) -> tuple[str, str]:
    """What it wrote to stdout and stderr until it ended with `code`."""
    with running(out, *words, env=env) as process:
        return ended(process, out, code)


def ended(process: Fork, out: Path, code: int = 0) -> tuple[str, str]:
    """What it wrote to stdout and stderr, after it ended with `code`."""
    found = process.wait(timeout=PATIENCE)
    said, told = (Path(f"{out}.{name}").read_text() for name in ("stdout", "stderr"))
    assert found == code, told[-3000:]
    return said, told


def units_so_far(out: Path) -> int:
    """Units of work that are committed."""
    journal = out.parent / f".{out.name}.partial" / ".rows.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_until(there: Callable[[], Any], process: Fork, out: Path) -> Any:
    """The first true value of `there`, while the process runs."""
    start = time.monotonic()
    while time.monotonic() - start < PATIENCE:
        if found := there():
            return found
        assert process.poll() is None, Path(f"{out}.stderr").read_text()[-3000:]
        time.sleep(0.02)
    raise AssertionError("it never came")
