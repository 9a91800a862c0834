"""`distill` from a server, stopped half-way: finished rows are kept, each is there once."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import ended, running, units_so_far, wait_until
from faults import Proxy, proxied, slow
from sparsedraft.text import dataset
from stages import distill
from transformers_server import ASKED


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"p{n}", "prompt": text}) for n, text in enumerate(ASKED)))
    return str(path)


@pytest.fixture
def proxy(served: str) -> Iterator[Proxy]:
    with proxied(served) as found:
        yield found


def command(target: Path, source: str, url: str) -> list[object]:
    server = ["--engine", "endpoint", "--url", url, "--served-name", "tiny/talker", "--concurrency", 2]
    return ["distill", target, source, "--max-new-tokens", 12, *server]


def again(target: Path, source: str, out: Path, url: str) -> None:
    """The same command, in this process."""
    server = {"engine": "endpoint", "url": url, "served_name": "tiny/talker", "concurrency": 2}
    distill(str(target), source, out, max_new_tokens=12, **server)


def test_killed_while_a_server_answers(talker: Path, source: str, served: str, proxy: Proxy, tmp_path: Path) -> None:
    out, whole = tmp_path / "cut", tmp_path / "whole"
    proxy.faults.extend([None] * 4)
    proxy.always = slow(3600)
    with running(out, *command(talker, source, proxy.url)) as process:
        wait_until(lambda: units_so_far(out) >= 3, process, out)
    kept, proxy.always = units_so_far(out), None
    assert 3 <= kept < len(ASKED)
    before = len(proxy.posts())
    again(talker, source, out, proxy.url)
    assert len(proxy.posts()) == before + len(ASKED) - kept, "finished rows are not asked for again"
    again(talker, source, whole, served)
    assert sorted(row["id"] for row in dataset.read(out)) == [f"p{n}/0" for n in range(len(ASKED))]
    assert (out / "data-00000.parquet").read_bytes() == (whole / "data-00000.parquet").read_bytes()


def test_ctrl_c_waits_for_no_server(talker: Path, source: str, proxy: Proxy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    proxy.faults.extend([None] * 3)
    proxy.always = slow(3600)
    with running(out, *command(talker, source, proxy.url)) as process:
        wait_until(lambda: units_so_far(out) == 3 and proxy.at_once == 2, process, out)
        process.send_signal(signal.SIGINT)
        said, told = ended(process, out, 130)  # the server would have kept it for an hour
    assert "Traceback" not in told and said == ""
    assert units_so_far(out) == 3
