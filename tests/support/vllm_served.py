"""vLLM's server of a tiny model on loopback, in the environment that runs the tests."""

import sys
from contextlib import AbstractContextManager
from pathlib import Path

import vllm_server
from vllm_run import environment

SMALL = ["--max-model-len", "128", "--max-num-seqs", "4", "--enforce-eager", "--dtype", "float32"]


def serving(model: Path, log: Path, *more: str) -> AbstractContextManager[vllm_server.VllmServer]:
    """The server of `model` with these options more, until the block ends; NotStarted where it does not start."""
    return vllm_server.serving(sys.executable, log, environment(), "--model", str(model), *SMALL, *more)
