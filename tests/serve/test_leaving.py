"""What is left of a request once its client has gone, or has its answer: no place that is taken, and no memory."""

import gc
import json
import re
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from served import Served, serving
from sparsedraft.serve.options import ServeOptions

ROWS, WAITING = 2, 6


@pytest.fixture(scope="module")
def served(tiny_checkpoint: Path) -> Iterator[Served]:
    yield from serving(ServeOptions(target=str(tiny_checkpoint), parallel=ROWS, queue=WAITING, served_name="tiny"))


def until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def ended(served: Served) -> int:
    return sum(map(int, re.findall(r"^sparsedraft:request_success_total\{.*\} (\d+)$", served.get("/metrics"), re.M)))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_before_its_answer_begins(
    served: Served, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """While its prompt is read into tokens, say: nothing more is written for it."""
    own, address, before = served.service.prompts, urlsplit(served.url), ended(served)

    def slow(request: Any) -> Any:
        time.sleep(0.5)
        return own(request)

    monkeypatch.setattr(served.service, "prompts", slow)
    begun: list[Any] = []
    begin = served.service.begin
    monkeypatch.setattr(served.service, "begin", lambda *of: begun.append(begin(*of)) or begun[-1])
    body = {"model": "tiny", "prompt": [7, 8], "n": ROWS + WAITING, "max_tokens": 400, "stream": stream}
    text = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        time.sleep(0.1)
    assert until(lambda: bool(begun)), "it was read, and began"
    assert until(lambda: not (served.service.engine.running or served.service.engine.waiting))
    assert all(job.given_up for job in begun[0].jobs)
    assert ended(served) - before <= ROWS, "those that waited never ran"


@pytest.mark.parametrize("stream", [True, False])
def test_answers_leave_memory_with_their_request(served: Served, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    """At once, and not when Python next looks for circles."""
    begin, seen = served.service.begin, []

    def begins(*of: Any) -> Any:
        answers = begin(*of)
        seen.append(weakref.ref(answers))
        return answers

    monkeypatch.setattr(served.service, "begin", begins)
    gc.disable()
    try:
        made = served.client.completions.create(model="tiny", prompt=[9], n=2, max_tokens=8, stream=stream)
        assert len([*made] if stream else made.choices) >= 2
        assert until(lambda: seen[0]() is None)
    finally:
        gc.enable()
