"""A proxy in front of a real server that spoils its answers on demand, and counts what passes through."""

import http.client
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from loopback import Quiet, listening


@dataclass
class Call:
    """One request as it came in, and the body that goes back."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int = 200
    answer: bytes = b""
    extra: dict[str, str] = field(default_factory=dict)  # headers of the answer
    cut: int | None = None  # bytes of the answer that are sent before the connection is dropped

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Fault = Callable[[Call], None]  # changes what goes back


@dataclass
class Proxy:
    """`faults` are for the next POSTs, one each; `always` is for those after them. The server never sees the fields
    named in `hidden`."""

    url: str
    hidden: tuple[str, ...] = ()
    faults: deque[Fault | None] = field(default_factory=deque)
    always: Fault | None = None
    seen: list[Call] = field(default_factory=list)
    at_once: int = 0
    most: int = 0  # calls at once
    lock: Any = field(default_factory=Lock)

    def posts(self) -> list[Call]:
        """The requests for an answer so far."""
        return [call for call in self.seen if call.body]


@contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """A proxy on loopback in front of the server at `upstream` (".../v1")."""
    with listening(_Handler) as (server, url):
        server.upstream = urlsplit(upstream).netloc
        server.proxy = proxy = Proxy(url)
        yield proxy


class _Handler(Quiet):
    def do_GET(self) -> None:
        self._pass_on(b"")

    def do_POST(self) -> None:
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with proxy.lock:
            proxy.at_once += 1
            proxy.most = max(proxy.most, proxy.at_once)
            fault = proxy.faults.popleft() if proxy.faults else proxy.always
        try:
            self._pass_on(body, fault)
        finally:
            with proxy.lock:
                proxy.at_once -= 1

    def _pass_on(self, body: bytes, fault: Fault | None = None) -> None:
        call = Call(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        self.server.proxy.seen.append(call)  # type: ignore[attr-defined]
        if fault is None or not getattr(fault, "alone", False):
            upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)  # type: ignore[attr-defined]
            upstream.request(self.command, self.path, self._shown(body), {"Content-Type": "application/json"})
            found = upstream.getresponse()
            call.status, call.answer = found.status, found.read()
            upstream.close()
        if fault is not None:
            fault(call)
        if call.cut != 0:
            self.send_response(call.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(call.answer)))
            for name, value in call.extra.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(call.answer[: call.cut])
        if call.cut is not None:
            self.close_connection = True

    def _shown(self, body: bytes) -> bytes | None:
        if not body:
            return None
        hidden = self.server.proxy.hidden  # type: ignore[attr-defined]
        return json.dumps({name: value for name, value in json.loads(body).items() if name not in hidden}).encode()


def alone(fault: Fault) -> Fault:
    """Mark a fault that does not need the real answer."""
    fault.alone = True  # type: ignore[attr-defined]
    return fault


def slow(seconds: float) -> Fault:
    """Says nothing for so long."""
    return lambda call: time.sleep(seconds)


@alone
def hung_up(call: Call) -> None:
    """The connection ends before the first byte."""
    call.cut = 0


def torn(call: Call) -> None:
    """The connection ends in the middle of the body."""
    call.cut = len(call.answer) // 2


def truncated(call: Call) -> None:
    """Half a JSON, sent as if it were whole."""
    call.answer = call.answer[: len(call.answer) // 2]


def refused(status: int, text: str = "no", **headers: str) -> Fault:
    """An answer of this status."""

    def fault(call: Call) -> None:
        call.status, call.answer = status, json.dumps({"error": {"message": text}}).encode()
        call.extra = {name.replace("_", "-"): value for name, value in headers.items()}

    return alone(fault)


def edited(change: Callable[[Call, Any], Any]) -> Fault:
    """The real answer, as `change` makes it from the call and the answer's JSON."""

    def fault(call: Call) -> None:
        if call.status == 200:
            call.answer = json.dumps(change(call, json.loads(call.answer))).encode()

    return fault
