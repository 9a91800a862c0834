"""vLLM's server in its own environment: answers one at a time and several at once, timed by the client."""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers import Missing
from peers_server import Answer, free_port, started

SERVER = "vllm.entrypoints.openai.api_server"
START, ANSWER = 600, 600  # seconds at most until a server is ready, and for one answer
CONTEXT = 2048  # tokens


class Vllm:
    """A running server of the model "me"."""

    def __init__(self, address: str) -> None:
        self.address = address

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        """The greedy answer to the prompt `ids`, and what the server counts as drafted and accepted meanwhile."""
        before, start = self._drafts(), time.perf_counter()
        written = self._complete(ids, tokens)
        seconds = time.perf_counter() - start
        drafted, accepted = (after - count for after, count in zip(self._drafts(), before, strict=True))
        return Answer(written, seconds, drafted, accepted)

    def together(self, prompts: Sequence[Sequence[int]], tokens: int, at_once: int) -> Answer:
        """Answers to all prompts, `at_once` under way at a time."""
        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            written = sum(pool.map(lambda ids: self._complete(ids, tokens), prompts))
        return Answer(written, time.perf_counter() - start)

    def _complete(self, ids: Sequence[int], tokens: int) -> int:
        body = {"model": "me", "prompt": list(ids), "max_tokens": tokens, "temperature": 0}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=ANSWER) as reply:
            return int(json.load(reply)["usage"]["completion_tokens"])

    def _drafts(self) -> tuple[int, int]:
        """(drafted, accepted) tokens since the server started."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=ANSWER) as reply:
            lines = reply.read().decode().splitlines()
        names = (f"vllm:spec_decode_num_{kind}_tokens_total{{" for kind in ("draft", "accepted"))
        drafted, accepted = (sum(int(float(x.split()[-1])) for x in lines if x.startswith(name)) for name in names)
        return drafted, accepted


def environment(python: Path, threads: int) -> dict[str, str]:
    """How vLLM's own pages say that a CPU is used: Intel's threads, bound to cores of their own."""
    library = python.parents[1] / "lib" / "libiomp5.so"
    preload = {"LD_PRELOAD": str(library)} if library.is_file() else {}
    settings = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    left_out = ("PYTHONPATH", "OMP_NUM_THREADS")  # of our own environment
    return {k: v for k, v in os.environ.items() if k not in left_out} | settings | preload


@contextmanager
def serving(python: Path, threads: int, log: Path, arguments: Sequence[str]) -> Iterator[Vllm]:
    """A server with these arguments, until the block ends; Missing where it does not start."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    names = ["--port", str(port), "--host", "127.0.0.1", "--served-model-name", "me", "--max-model-len", str(CONTEXT)]
    command = [str(python), "-m", SERVER, *names, "--dtype", "bfloat16", "--enforce-eager", *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment(python, threads))
    try:
        if not started(process, address, START):
            raise Missing(f"vLLM did not start: {log} says why")
        yield Vllm(address)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def drafting(model: Path | str, tokens: int) -> list[str]:
    """The arguments of a draft model."""
    return ["--speculative-config", json.dumps({"model": str(model), "num_speculative_tokens": tokens})]


def proposing(model: Path, tokens: int) -> list[str]:
    """The arguments of drafts by our own engine."""
    method: dict[str, Any] = {"method": "custom_class", "model": "sparsedraft.integrations.vllm.Proposer"}
    more = ["--speculative-config", json.dumps({**method, "num_speculative_tokens": tokens})]
    return [*more, "--additional-config", json.dumps({"sparsedraft_drafter": str(model)})]
