"""`distill` from a server, and with Ray workers, stopped half-way: finished rows are kept, each is there once."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults import Proxy, proxied, slow
from serving import ASKED, ENVIRONMENT

from sparsedraft import distilled
from sparsedraft.journal import read_lines

ROWS = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"p{n}", "prompt": text}) for n, text in enumerate(ASKED)))
    return str(path)


@pytest.fixture
def proxy(served: str) -> Iterator[Proxy]:
    with proxied(served) as found:
        yield found


def start(target: Path, source: str, out: Path, *options: object) -> subprocess.Popen:
    command = [sys.executable, "-c", "from sparsedraft.cli import main; main()", "distill", str(target), source]
    return subprocess.Popen(
        [*command, "--out", str(out), "--max-new-tokens", "12", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        text=True,
    )


def finished(process: subprocess.Popen, code: int = 0) -> str:
    """What the process said, after it ended with `code`."""
    said = process.communicate(timeout=300)[0]
    assert process.returncode == code, said[-3000:]
    return said


def rows_so_far(out: Path) -> int:
    journal = out.parent / f".{out.name}.partial" / ".rows.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_until(there: Callable[[], Any], process: subprocess.Popen) -> None:
    for _ in range(6000):
        if there():
            return
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.02)
    raise AssertionError("it never came")


def same(a: Path, b: Path) -> bool:
    """Whether two data folders hold the same bytes of data, every row once."""
    names = [row["id"] for row in distilled.read(a)]
    assert sorted(names) == [f"p{n}/0" for n in range(ROWS)]
    return (a / "data-00000.parquet").read_bytes() == (b / "data-00000.parquet").read_bytes()


def endpoint(url: str) -> list[object]:
    return ["--engine", "endpoint", "--url", url, "--served-name", "tiny/talker", "--concurrency", 2]


def test_killed_while_a_server_answers(talker: Path, source: str, served: str, proxy: Proxy, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    proxy.faults.extend([None] * 4)
    proxy.always = slow(60)
    process = start(talker, source, out, *endpoint(proxy.url))
    wait_until(lambda: rows_so_far(out) >= 3, process)
    process.kill()
    process.wait()
    kept, proxy.always = rows_so_far(out), None
    assert 3 <= kept < ROWS
    before = len(proxy.posts())
    finished(start(talker, source, out, *endpoint(proxy.url)))
    assert len(proxy.posts()) == before + ROWS - kept, "finished rows are not asked for again"
    finished(start(talker, source, tmp_path / "whole", *endpoint(served)))
    assert same(out, tmp_path / "whole")


def test_ctrl_c_waits_for_no_server(talker: Path, source: str, proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults.extend([None] * 3)
    proxy.always = slow(600)
    process = start(talker, source, tmp_path / "out", *endpoint(proxy.url))
    wait_until(lambda: rows_so_far(tmp_path / "out") == 3 and proxy.at_once == 2, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=100)[0]  # the server would have kept it for ten minutes
    assert process.returncode not in (0, 2) and "Traceback" not in said, said
    assert len(read_lines(tmp_path / ".out.partial" / ".rows.jsonl")) == 3
