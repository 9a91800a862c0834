"""What servers on loopback have in common that tests put up beside or in front of real ones."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Quiet(BaseHTTPRequestHandler):
    """Says nothing on stderr, and does not mind a client that has given up."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[tuple[Any, str]]:
    """(a server that answers with `handler`, its address, ".../v1"), until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
