"""What stands before the application: who may call it, by which name, with which key, and how much may be sent."""

import hmac
from collections.abc import Iterable
from contextlib import suppress

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsedraft.serve import replies

LARGEST = 16 << 20  # bytes of a request's body
LOCAL = ("127.0.0.1", "localhost", "::1")  # what this machine is called by its own clients
HEALTH = "/health"
OPEN = ("/", "/page.css", "/page.js")  # paths that need no key: none tells of a model


def refusal(message: str, status: int, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's form."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return JSONResponse(replies.error(message, kind, param=param, code=code), status)


class TooLarge(Exception):
    """A body of more than LARGEST bytes."""


class Guard:
    """Lets requests through to `app` that name one of `hosts`, have the key where there is one, and are not too large.

    The host is checked so that a page from elsewhere, whose name was made to lead to this machine, cannot ask. Such a
    page has no key, so with one any name will do; and whether the server is well, anybody may ask.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, hosts: Iterable[str]) -> None:
        self.app, self.api_key, self.hosts = app, api_key, {*LOCAL, *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if (told := self._refused(scope["path"], headers)) is not None:
            await told(scope, receive, send)
            return
        await self._limited(scope, receive, send)

    def _refused(self, path: str, headers: Headers) -> JSONResponse | None:
        if path == HEALTH:
            return None
        if self.api_key is None and name_of(headers.get("host", "")) not in self.hosts:
            return refusal("this server is not called by that host name: see --allowed-host.", 400, code="invalid_host")
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if self.api_key is None or path in OPEN or hmac.compare_digest(given.encode(), self.api_key.encode()):
            return None
        return refusal("the API key is missing or wrong: send it as a bearer token.", 401, code="invalid_api_key")

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Bodies are counted as they come, whatever their header says, and given up before they are in memory.

        What the application makes of the end of such a body is not sent.
        """
        read, refused = 0, False

        async def counted() -> Message:
            nonlocal read, refused
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST:
                refused = True
                raise TooLarge
            return message

        async def sent(message: Message) -> None:
            if not refused:
                await send(message)

        with suppress(TooLarge):
            await self.app(scope, counted, sent)
        if refused:
            await refusal(f"the body has more than {LARGEST >> 20} MiB: send less.", 413)(scope, receive, send)


def name_of(host: str) -> str:
    """The name in a Host header, without its port and the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
