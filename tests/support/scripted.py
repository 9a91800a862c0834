"""A server on loopback that says what a test tells it to, for words that no real server here can be brought to say."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Lock
from typing import Any

from loopback import Quiet, listening

Raw = Callable[[BaseHTTPRequestHandler], None]  # writes an answer, headers and all, as it likes
Script = Callable[[dict[str, Any]], Any]  # a request's JSON to the body, to (status, body), or to a Raw


@dataclass
class Scripted:
    """`asked`: the JSON of every request for an answer, in their order; `headers` those of all requests."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=Lock)


@contextmanager
def scripted(script: Script, models: Any = None) -> Iterator[Scripted]:
    """A server of the model "m" whose answers `script` gives; `models` in the place of its list of models."""
    with listening(_Handler) as (server, url):
        server.script, server.models = script, models or {"data": [{"id": "m"}]}
        server.scripted = found = Scripted(url)
        yield found


class _Handler(Quiet):
    def do_GET(self) -> None:
        self._note()
        self._send(self.server.models)  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        self._note()
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = self.server.scripted  # type: ignore[attr-defined]
        with found.lock:
            found.asked.append(asked)
        self._send(self.server.script(asked))  # type: ignore[attr-defined]

    def _note(self) -> None:
        found = self.server.scripted  # type: ignore[attr-defined]
        with found.lock:
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            found.paths.append(self.path)

    def _send(self, answer: Any) -> None:
        if callable(answer):
            answer(self)
            self.close_connection = True
            return
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def said(text: str | None, finish_reason: Any = "stop", *, usage: Any = None, logprobs: Any = None, **more: Any) -> Any:
    """The body of an answer; `more` are fields of its message."""
    message = {"role": "assistant", "content": text, **more}
    choice = {"index": 0, "message": message, "text": text, "finish_reason": finish_reason, "logprobs": logprobs}
    return {"choices": [choice], **({"usage": usage} if usage else {})}


def places(tokens: list[tuple[str, list[tuple[str, float]]]]) -> Any:
    """Log-probabilities of tokens, each with the likeliest at its place."""
    return {
        "content": [
            {"token": token, "logprob": -1.0, "top_logprobs": [{"token": t, "logprob": p} for t, p in found]}
            for token, found in tokens
        ]
    }
