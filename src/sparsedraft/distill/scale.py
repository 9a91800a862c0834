"""Many workers: Ray Data drives engine actors, each with its own model copy or connection, over the units of a job.

Actors that die are started again and their units redone (Ray's own fault tolerance); rows are committed by the driver
alone, so that a unit which was redone is still written once.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from sparsedraft.conversation import Make, run_units
from sparsedraft.distill.job import Job
from sparsedraft.errors import UserError
from sparsedraft.journal import Journal
from sparsedraft.prompts import Prompt


class _Worker:
    """What an actor does: open the job's engine once, then make units."""

    def __init__(self, job: Job, units: Sequence[Sequence[Prompt]]) -> None:
        from sparsedraft.console import quiet_libraries

        quiet_libraries()
        self.units, self.concurrency = units, job.concurrency
        self.make: Make = job.maker(job.engine())

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        numbers = [int(number) for number in batch["id"]]
        done = run_units([self.units[n] for n in numbers], self.make, _Memory(), self.concurrency)
        found = {numbers[place]: json.dumps(rows) for place, rows in done}
        return {"unit": list(found), "rows": list(found.values())}


class _Memory(Journal):
    """A journal that keeps nothing: the driver commits."""

    def __init__(self) -> None:
        self.places, self.counts = {}, {}

    def append(self, number: int, rows: Sequence[dict[str, Any]]) -> None:
        """Not here."""


def run_with_ray(
    units: Sequence[Sequence[Prompt]], job: Job, journal: Journal, workers: int
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Make the units that `journal` lacks with `workers` actors, commit each as it arrives, yield number and rows.

    Joins the Ray cluster at RAY_ADDRESS, or starts one on this machine. An actor asks for a GPU if the job's device is
    one. Raises UserError where Ray is not installed, and what an actor raises as a user's mistake.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--workers above 1 need Ray: install sparsedraft with the extra [ray].") from None
    todo = [number for number in range(len(units)) if number not in journal]
    if not todo:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    shared = ray.put(list(units))
    data = ray.data.from_items([{"id": number} for number in todo], override_num_blocks=len(todo)).map_batches(
        _Worker,
        fn_constructor_args=(job, shared),
        batch_size=job.concurrency,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=1 if job.device.startswith("cuda") and job.endpoint is None else 0,
    )
    try:
        for row in data.iter_rows():
            rows = json.loads(row["rows"])
            journal.append(row["unit"], rows)
            yield row["unit"], rows
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise (UserError(str(cause).splitlines()[-1]) if cause else error) from None
