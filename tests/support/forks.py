"""`sparsedraft` as a process of its own that need not import what it works with.

Processes are forked from one that has imported everything and done nothing (multiprocessing's fork server): each is a
real process with a memory, signals and an exit code of its own, at a tenth of the CPU time of a fresh interpreter.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from sparsedraft import cli
from sparsedraft.base.console import console, leads
from transformers_server import ENVIRONMENT

# What the commands import when they run, models of the tests included. A name that is not there is passed over.
HEAVY = [
    "torch", "transformers", "accelerate", "datasets", "pyarrow.parquet", "scipy.stats", "matplotlib.pyplot",
    "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
    "sparsedraft.cli", "sparsedraft.run", "sparsedraft.stages.evaluate.stage", "sparsedraft.stages.report.stage",
    "sparsedraft.stages.distill.stage", "sparsedraft.stages.prune.stage", "sparsedraft.stages.prune.drop_layers",
    "sparsedraft.stages.finetune.stage", "sparsedraft.writers.server.endpoint",
]  # fmt: skip
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(HEAVY)


class Fork:
    """`sparsedraft WORDS` in a forked process, with as much of `subprocess.Popen` as tests need.

    It works in the folder `cwd` and appends what it writes to the files `stdout` and `stderr`. `main` is what it runs
    in the place of the command line: a function of a module, which finds WORDS in sys.argv and returns an exit code.
    """

    def __init__(
        self,
        *words: object,
        stdout: Path,
        stderr: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] = ENVIRONMENT,
        main: Callable[[], object] = cli.main,
    ) -> None:
        arguments = (main, [*map(str, words)], str(stdout), str(stderr), str(cwd or Path.cwd()), dict(env))
        self._process = SERVER.Process(target=_work, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """Its exit code, minus the signal that ended it, or None while it works."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("sparsedraft", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _work(
    main: Callable[[], object], words: list[str], stdout: str, stderr: str, cwd: str, env: dict[str, str]
) -> None:
    for number, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["sparsedraft", *words]
    console.quiet = not leads()  # as if it were imported in this environment
    torch.set_num_threads(1)
    sys.exit(main())  # type: ignore[arg-type]
