"""Our server as a process of its own, and what it takes of the machine."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from processes import free_port, started, stop
from serving_clients import Endpoint
from sparsedraft.base.errors import UserError
from sparsedraft.serve.service import ALONE

NAME = "served"  # what clients call the model
START, END = 300, 60  # seconds at most until a server is ready, and until it has ended


class Served:
    """`sparsedraft serve TARGET OPTIONS` with `parallel` places; `close` ends it. UserError where it does not start."""

    def __init__(self, target: Path, threads: int, parallel: int, *options: str | Path) -> None:
        port = free_port()
        self.address, self._log = f"http://127.0.0.1:{port}", tempfile.TemporaryFile()  # noqa: SIM115  (the process's)
        command = [sys.executable, "-m", "sparsedraft", "serve", target, "--port", port, "--served-name", NAME]
        command += ["--parallel", parallel, *options]
        self._process = subprocess.Popen(
            [*map(str, command)],
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        if not started(self._process, self.address, START):
            self.close()
            said = os.pread(self._log.fileno(), 1 << 16, 0).decode(errors="replace").strip().splitlines()
            raise UserError(f"sparsedraft serve did not start ({said[-1][:300] if said else 'it said nothing'}).")

    def endpoint(self, **fields: Any) -> Endpoint:
        """Plain completions of greedy answers, drafted as `fields` say."""
        said = {"model": NAME, "temperature": 0, "stream_options": {"include_usage": True}, "include_metrics": True}
        return Endpoint("sparsedraft serve", self.address, "/v1/completions", {**said, **fields})

    def alone(self) -> Endpoint:
        """The same without a drafter."""
        return self.endpoint(draft_model=ALONE)

    @property
    def pid(self) -> int:
        return self._process.pid

    def resident(self) -> int:
        """Bytes of its memory."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def close(self) -> None:
        """End the process."""
        stop(self._process, END)


def busy(pids: list[int], seconds: float = 1.0) -> tuple[float, float]:
    """Cores in use while nobody asks anything: (by these processes, by all others)."""

    def used() -> float:
        times = [psutil.Process(pid).cpu_times() for pid in pids]
        return sum(each.user + each.system for each in times)

    before, start = used(), time.perf_counter()
    whole = psutil.cpu_percent(seconds) / 100 * (psutil.cpu_count() or 1)
    own = (used() - before) / (time.perf_counter() - start)
    return own, max(0.0, whole - own)
