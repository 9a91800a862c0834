"""Many workers: Ray Data drives engine actors, each with its own model copy or connection, over the units of a job.

Actors that die are started again and their units redone (Ray's own fault tolerance); rows are committed by the driver
alone, so that a unit which was redone is still written once.
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
    """What an actor does: open the job's engine once, then make units, several at once where the job says so.

    A mistake of the user's travels back as a value: Ray would wrap the exception, and restart what raised it.
    """

    def __init__(self, job: Job, threads: int | None) -> None:
        import torch

        from sparsedraft.base.console import quiet_libraries

        quiet_libraries()
        if threads is not None:  # else all of them would use all cores
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
    """Make what `journal` lacks of the units with `workers` actors, commit each as it arrives, yield its rows.

    An actor asks for a GPU if the job's device is one. Raises UserError where Ray is not installed or does not come up,
    and for what an actor found to be the user's mistake.
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
            override_num_blocks=len(todo),  # a task each: what is done comes back at once
        ).map_batches(
            _Worker,
            # an actor sees its own GPU alone, as the first
            fn_constructor_args=(replace(job, device="cuda") if on_gpu else job, threads),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=workers, max_concurrent_calls_per_actor=job.concurrency, enable_true_multi_threading=True
            ),
            num_cpus=1,
            num_gpus=1 if on_gpu else 0,
        )
        done = data.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=0)  # else it holds one back
        for batch in done:
            if failed := str(batch["failed"][0]):
                raise UserError(failed)
            unit, rows = todo[int(batch["unit"][0])], json.loads(str(batch["rows"][0]))
            journal.append(keys_of(unit), rows)
            yield rows


@contextmanager
def _ray(workers: int) -> Iterator[Any]:
    """Ray, joined at RAY_ADDRESS or started on this machine; left, or stopped, at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of how Ray Data itself uses actors
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--workers above 1 need Ray: install sparsedraft with the extra [ray].") from None
    ours = not ray.is_initialized()
    with redirect_stdout(sys.stderr):  # where Ray tells of workers that died; ours is for the result alone
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
    """Join the cluster at RAY_ADDRESS, or start one of this machine alone, without its dashboard."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            host, _, port = address.rpartition(":")
            if port.isdecimal() and "://" not in address:  # Ray itself tries for minutes
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
                num_cpus=max(workers, os.cpu_count() or 1),  # workers may be more than cores: many wait for a server
                object_store_memory=OBJECT_STORE,
                include_dashboard=False,
                **quiet,
            )
            return
        except Exception as error:  # Ray's own, and no narrower: its processes get half a minute to come up
            ray.shutdown()
            if not tries_left:
                reason = first_line(error)
                raise UserError(
                    f"--workers {workers}: Ray does not start on this machine ({reason}): see whether it is too busy, "
                    "or take --workers 1."
                ) from None
