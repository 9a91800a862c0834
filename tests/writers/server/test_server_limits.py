"""Servers that would hold a command for ever: every call has an end in seconds and in bytes, every wait one in seconds.

No test measures time: what is proved is that the call ends, and with which words.
"""

import time
import zlib
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from scripted import said, scripted
from sparsedraft.base.errors import UserError
from sparsedraft.writers.server import server as servers
from sparsedraft.writers.server.server import Server

ASK = {"model": "m", "messages": [], "max_tokens": 4}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ENOUGH = 400  # writes of a server that would go on: the test is to end long before


def trickle(begin: bytes, piece: bytes) -> Any:
    """Writes a `piece` every 20 ms, so that it is never silent for long."""

    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(begin)
        for _ in range(ENOUGH):
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(0.02)

    return write


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (HEAD + b"Content-Length: 100000\r\n\r\n", b" "),  # a body without end
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (HEAD + b"X-Slow: ", b"x"),  # headers without end
        (b"", b"H"),  # not even a status
    ],
)
def test_a_trickle_is_no_answer(begin: bytes, piece: bytes) -> None:
    with scripted(lambda asked: trickle(begin, piece)) as server:
        asked = Server(server.url, timeout=0.15, retries=1, wait=0)
        with pytest.raises(
            UserError, match=r"(not finished its answer|does not answer|cannot be reached).*asked 2 times"
        ):
            asked.chat("prompt a", ASK)
        assert len(server.asked) == 2


def test_the_whole_call_is_what_ends_a_trickle() -> None:
    with (
        scripted(lambda asked: trickle(HEAD + b"Content-Length: 100000\r\n\r\n", b" ")) as server,
        pytest.raises(UserError, match=r"has not finished its answer within 0\.6 s \(4 times --timeout\)"),
    ):
        Server(server.url, timeout=0.15, retries=0).chat("prompt a", ASK)


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Chunks of a mebibyte, some more than any answer may have."""
    handler.wfile.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(64):
        handler.wfile.write(b"100000\r\n" + b" " * 0x100000 + b"\r\n")


def swelling(handler: BaseHTTPRequestHandler) -> None:
    """64 KiB that are 64 MiB of blanks when decompressed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = b"".join(packer.compress(b" " * 0x100000) for _ in range(64)) + packer.flush()
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    handler.wfile.write(head % len(body) + body)


@pytest.mark.parametrize("answer", [endless, swelling])
def test_more_bytes_than_any_answer_has(answer: Any) -> None:
    with scripted(lambda asked: answer) as server:
        asked = Server(server.url, retries=3, wait=0)
        with pytest.raises(UserError, match=r"sends more than any answer can have to prompt a: see to it"):
            asked.chat("prompt a", ASK)
        assert len(server.asked) == 1, "it would say the same again"


def test_an_honest_answer_of_many_tokens_is_no_such_thing() -> None:
    """20 likeliest at each of 1,000 places, some 90 bytes each, and all of it compressed."""
    top = [{"token": "ü" * 8, "logprob": -1.0, "bytes": list("ü".encode() * 8)}] * 20
    content = [{"token": "a", "logprob": 0.0, "top_logprobs": top}] * 1000

    def answer(handler: BaseHTTPRequestHandler) -> None:
        import gzip
        import json

        body = gzip.compress(json.dumps(said("a", logprobs={"content": content})).encode())
        handler.wfile.write(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with scripted(lambda asked: answer) as server:
        choice = Server(server.url).chat("prompt a", {**ASK, "max_tokens": 1000, "top_logprobs": 20})
    assert choice.logprobs == {"content": content}


def test_an_errors_endless_body_is_cut_off() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(64):
            handler.wfile.write(b"100000\r\n" + b"no " * 0x55555 + b"!\r\n")

    with scripted(lambda asked: answer) as server, pytest.raises(UserError, match=r"answers 400 \(no no") as error:
        Server(server.url).chat("prompt a", ASK)
    assert len(str(error.value)) < 400


def test_other_compressions_are_not_unpacked() -> None:
    body = b"x" * 40
    head = HEAD + b"Content-Encoding: gzip, gzip\r\nContent-Length: 40\r\n\r\n"
    with (
        scripted(lambda asked: lambda handler: handler.wfile.write(head + body)) as server,
        pytest.raises(UserError, match="compresses its answers in a way that it was not asked for"),
    ):
        Server(server.url, retries=0).chat("prompt a", ASK)


@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"choices":' * 50_000])
def test_json_without_a_bottom_is_no_answer(nested: bytes) -> None:
    with scripted(lambda asked: nested) as server, pytest.raises(UserError, match="answers that are not whole"):
        Server(server.url, retries=0).chat("prompt a", ASK)


@pytest.mark.parametrize(
    "header",
    ["inf", "Infinity", "1e308", "nan", "-inf", "1e400", "9" * 400, "Wed, 21 Oct 99999 07:28:00 GMT",
     "Wed, 21 Oct 2099 99999999999999999999:28:00 GMT", "Wed, 21 Oct 2099 07:28:00 +9999999"],
)  # fmt: skip
def test_a_wait_has_an_end_whatever_the_server_asks_for(header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(servers.time, "sleep", waits.append)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        head = b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: %s\r\n\r\n"
        handler.wfile.write(head % header.encode())

    with scripted(lambda asked: answer) as server, pytest.raises(UserError, match="answers 503"):
        Server(server.url, retries=2, wait=0.5).chat("prompt a", ASK)
    assert len(waits) == 2 and all(0 <= wait <= servers.LONGEST_WAIT for wait in waits)


def test_many_tries_make_no_number_overflow() -> None:
    assert Server("http://127.0.0.1:9/v1", wait=1.0)._pause(10**9, "") <= 16
