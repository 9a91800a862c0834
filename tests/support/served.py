"""`sparsedraft serve` on loopback, in this process: its address, its service, and a client."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import uvicorn

from sparsedraft.serve.app import application
from sparsedraft.serve.options import ServeOptions
from sparsedraft.serve.service import Service
from sparsedraft.serve.stage import running


class Served:
    """A running server: its address and its service."""

    def __init__(self, url: str, service: Service) -> None:
        self.url, self.service = url, service
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """(status, JSON) of a plain request."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as answer:
            return str(answer.read().decode())


def serving(options: ServeOptions, key: str | None = None) -> Iterator[Served]:
    with running(options) as service:
        config = uvicorn.Config(application(service, key, ()), port=0, log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(f"http://127.0.0.1:{port}", service)
        server.should_exit = True
        thread.join(30)
