"""Several workers: Ray Data runs the units of a job on actors, each with its own model or connection.

Ray restarts actors that die and repeats their units. Only the driver commits rows, so a repeated unit is still written
once.
"""

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from typing import Any

from sparsedraft.base.errors import UserError, first_line
from sparsedraft.base.journal import Journal
from sparsedraft.stages.distill.job import Job
from sparsedraft.text.prompts import Prompt
from sparsedraft.writers.units import Make, keys_of, lacking

OBJECT_STORE = 256 << 20  # bytes: units and rows pass through, none stays
STARTS = 3  # tries to start Ray on a busy machine


class _Worker:
    """An actor: it opens the job's engine once, then makes units, several at once if the job says so.

    A user's mistake is returned as a value: Ray would wrap an exception, and restart the actor that raised it.
    """

    def __init__(self, job: Job, threads: int | None) -> None:
        import torch

        from sparsedraft.base.console import quiet_libraries

        quiet_libraries()
        if threads is not None:  # otherwise every actor would use all cores
            torch.set_num_threads(threads)
        self.make: Make | None = None
        self.failed = ""
        try:
            self.make = job.maker(job.writer())
        except (UserError, FloatingPointError) as error:
            self.failed = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        number, unit = int(batch["unit"][0]), [Prompt.of(row) for row in json.loads(str(batch["prompts"][0]))]
        if self.make is None:
            return {"unit": [number], "rows": [""], "failed": [self.failed]}
        try:
            return {"unit": [number], "rows": [json.dumps(self.make(unit))], "failed": [""]}
        except (UserError, FloatingPointError) as error:
            return {"unit": [number], "rows": [""], "failed": [str(error)]}


def run_with_ray(
    units: Sequence[Sequence[Prompt]], job: Job, journal: Journal, workers: int
) -> Iterator[list[dict[str, Any]]]:
    """Make the units that `journal` lacks with `workers` actors; commit each as it arrives, and yield its rows.

    An actor asks for a GPU if the job's device is one. Raises UserError where Ray is not installed or does not start,
    and for a user's mistake that an actor reports.
    """
    todo = lacking(units, journal)
    if not todo:
        return
    on_gpu = job.endpoint is None and job.device.startswith("cuda")
    with _ray(workers) as ray:
        cores = int(ray.cluster_resources().get("CPU", 1))
        threads = None if "OMP_NUM_THREADS" in os.environ else max(1, cores // workers)
        data = ray.data.from_items(
            [{"unit": n, "prompts": json.dumps([asdict(prompt) for prompt in unit])} for n, unit in enumerate(todo)],
            override_num_blocks=len(todo),  # one task a unit: each result comes back at once
        ).map_batches(
            _Worker,
            # an actor sees only its own GPU, as number 0
            fn_constructor_args=(replace(job, device="cuda") if on_gpu else job, threads),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=workers, max_concurrent_calls_per_actor=job.concurrency, enable_true_multi_threading=True
            ),
            num_cpus=1,
            num_gpus=1 if on_gpu else 0,
        )
        batches = data.iter_batches(
            batch_size=1, batch_format="numpy", prefetch_batches=0
        )  # with prefetching it would hold one unit back
        for batch in batches:
            if failed := str(batch["failed"][0]):
                raise UserError(failed)
            unit, rows = todo[int(batch["unit"][0])], json.loads(str(batch["rows"][0]))
            journal.append(keys_of(unit), rows)
            yield rows


@contextmanager
def _ray(workers: int) -> Iterator[Any]:
    """Ray: the cluster at RAY_ADDRESS, or one started on this machine, which is stopped at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns about Ray Data's own use of actors
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--workers above 1 need Ray: install sparsedraft with the extra [ray].") from None
    ours = not ray.is_initialized()
    with redirect_stdout(sys.stderr):  # Ray reports dead workers there; standard output holds the result only
        try:
            if ours:
                _start(ray, workers)
            log = logging.getLogger("ray.data")
            log.handlers = [handler for handler in log.handlers if not isinstance(handler, logging.StreamHandler)]
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield ray
        finally:
            if ours:
                ray.shutdown()


def _start(ray: Any, workers: int) -> None:
    """Join the cluster at RAY_ADDRESS, or start one on this machine, without its dashboard."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            host, _, port = address.rpartition(":")
            if port.isdecimal() and "://" not in address:  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address, **quiet)
        except OSError as error:  # ConnectionError, which Ray raises, is one
            reason = first_line(error)
            raise UserError(f"RAY_ADDRESS {address}: no Ray cluster answers there ({reason}): unset it.") from None
        return
    for tries_left in reversed(range(STARTS)):
        try:
            ray.init(
                "local",
                num_cpus=max(
                    workers, os.cpu_count() or 1
                ),  # there may be more workers than cores: they wait for a server
                object_store_memory=OBJECT_STORE,
                include_dashboard=False,
                **quiet,
            )
            return
        except Exception as error:  # Ray raises many types here; its processes have half a minute to start
            ray.shutdown()
            if not tries_left:
                reason = first_line(error)
                raise UserError(
                    f"--workers {workers}: Ray does not start on this machine ({reason}): see whether it is too busy, "
                    "or take --workers 1."
                ) from None
