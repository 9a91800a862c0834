"""HTTP calls that always end: after a number of seconds and of bytes, whatever the server does.

Any client can limit a silence. But a server that sends a byte now and then is never silent for long. So calls run in an
event loop, which limits the whole call, from the connection on.
"""

import asyncio
import base64
import logging
import os
import socket
import ssl
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import cached_property
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

try:
    import httpx2
except ImportError:  # it comes with an extra, and this module is imported without it, too
    httpx2 = None  # type: ignore[assignment]

from sparsedraft.base.errors import UserError, first_line

for _name in ("httpx2", "httpcore2"):  # their logs show addresses and headers, and so keys
    logging.getLogger(_name).setLevel(logging.WARNING)

TOLD = 1 << 16  # bytes of an error's body that are read
ENCODINGS = ("", "identity", "gzip", "deflate")  # those that are asked for: 64 KiB expand to at most 64 MiB


class Failed(Exception):
    """A call that failed and may succeed if repeated. The message says what the server does: "cannot be reached"."""


class TooMuch(Exception):
    """A body that is longer than any answer can be."""


@dataclass(frozen=True)
class Reply:
    """The server's reply, of any status."""

    status: int
    body: bytes
    retry_after: str = ""


class Calls:
    """Calls to the server at `url` with a `key` ("": none). Many threads may call at once.

    `silence` and `whole` limit a silence and a whole call, in seconds. A user's name and password in the address
    replace the key.
    """

    def __init__(self, url: str, key: str, silence: float, whole: float) -> None:
        if httpx2 is None:
            raise UserError("--engine endpoint needs httpx2: install sparsedraft with the extra [endpoint].")
        parts = urlsplit(url)
        self._parts = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
        self.silence, self.whole = silence, whole
        headers = {"Accept-Encoding": "gzip, deflate", "Authorization": f"Bearer {key or 'none'}"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        self._lock = Lock()
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        try:
            self._client = httpx2.AsyncClient(
                headers=headers, timeout=silence, limits=limits, follow_redirects=True, max_redirects=5
            )
        except (ValueError, ImportError):  # their messages hold the proxy's password
            raise UserError(
                "the proxy that HTTP_PROXY or HTTPS_PROXY names cannot be used: mend or unset it."
            ) from None

    def get(self, path: str, most: int) -> Reply:
        """The answer to a GET of `path` (behind the server's address), of at most so many bytes."""
        return self._run(self._call("GET", path, None, most))

    def post(self, path: str, body: bytes, most: int) -> Reply:
        """The answer to a POST of JSON. Both raise Failed or TooMuch."""
        return self._run(self._call("POST", path, body, most))

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        Thread(target=loop.run_forever, daemon=True).start()  # a daemon: the program may end during a call
        return loop

    def _run(self, call: Coroutine[Any, Any, Reply]) -> Reply:
        with self._lock:
            loop = self._loop
        return asyncio.run_coroutine_threadsafe(call, loop).result()

    async def _call(self, method: str, path: str, content: bytes | None, most: int) -> Reply:
        url = urlunsplit(self._parts._replace(path=f"{self._parts.path.rstrip('/')}/{path}"))
        headers = {"Content-Type": "application/json"} if content is not None else {}
        try:
            async with (
                asyncio.timeout(self.whole),
                self._client.stream(method, url, content=content, headers=headers) as response,
            ):
                body = await _read(response, most)
                return Reply(response.status_code, body, response.headers.get("retry-after", ""))
        except httpx2.TimeoutException:
            raise Failed(f"does not answer within {self.silence:g} s (--timeout)") from None
        except TimeoutError:
            raise Failed(f"has not finished its answer within {self.whole:g} s (4 times --timeout)") from None
        except httpx2.DecodingError:
            raise Failed("sends answers that are not whole") from None
        except (httpx2.RequestError, httpx2.InvalidURL, OSError) as error:
            raise Failed(f"cannot be reached ({_reason(error)})") from None


async def _read(response: "httpx2.Response", most: int) -> bytes:
    """The decompressed body. TooMuch if it has more than `most` bytes; the body of an error is cut off instead."""
    is_error = response.status_code >= 400
    if response.headers.get("content-encoding", "").strip().lower() not in ENCODINGS:
        raise Failed("compresses its answers in a way that it was not asked for")
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if is_error and len(body) > TOLD:
            break
        if len(body) > most:
            raise TooMuch
    return bytes(body[:TOLD] if is_error else body)


def _reason(error: BaseException) -> str:
    """The first cause in a chain of errors; the operating system's message if there is one."""
    cause, at = error, error
    while (below := at.__cause__ or at.__context__) is not None and below is not error:
        at = below
        if isinstance(at, OSError) and at.strerror:
            cause = at
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError | socket.gaierror) and (cause.errno or 0) > 0:
        return os.strerror(cause.errno or 0)  # asyncio replaces the system's message
    return first_line(cause)
