"""vLLM's server in its own environment: answers one at a time and several at once, timed by the client."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import vllm_server
from peers import Missing
from peers_server import Answer

CONTEXT = 2048  # tokens


class Vllm:
    """A running server."""

    def __init__(self, server: vllm_server.VllmServer) -> None:
        self.server = server

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        """The greedy answer to the prompt `ids`, and what the server counts as drafted and accepted meanwhile."""
        before, start = self.server.drafts(), time.perf_counter()
        written = self._complete(ids, tokens)
        seconds = time.perf_counter() - start
        drafted, accepted = (after - count for after, count in zip(self.server.drafts(), before, strict=True))
        return Answer(written, seconds, drafted, accepted)

    def together(self, prompts: Sequence[Sequence[int]], tokens: int, at_once: int) -> Answer:
        """Answers to all prompts, `at_once` under way at a time."""
        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            written = sum(pool.map(lambda ids: self._complete(ids, tokens), prompts))
        return Answer(written, time.perf_counter() - start)

    def _complete(self, ids: Sequence[int], tokens: int) -> int:
        return int(self.server.complete(ids, max_tokens=tokens, temperature=0)["usage"]["completion_tokens"])


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
    settings = ["--max-model-len", str(CONTEXT), "--dtype", "bfloat16", "--enforce-eager"]
    try:
        with vllm_server.serving(python, log, environment(python, threads), *settings, *arguments) as server:
            yield Vllm(server)
    except vllm_server.NotStarted as why:
        raise Missing(str(why)) from None


def drafting(model: Path | str, tokens: int) -> list[str]:
    """The arguments of a draft model."""
    return ["--speculative-config", json.dumps({"model": str(model), "num_speculative_tokens": tokens})]


def proposing(model: Path, tokens: int, **settings: Any) -> list[str]:
    """The arguments of drafts by our own engine."""
    ours = json.dumps({"sparsedraft": {"drafter": str(model), **settings}})
    return [*drafting("sparsedraft.integrations.vllm.Proposer", tokens), "--additional-config", ours]
