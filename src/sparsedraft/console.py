"""Everything that is written for people: progress and tables, all on stderr, so that stdout stays for results."""

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def leads() -> bool:
    """Whether this process is alone or the first of those that a launcher started: it alone speaks."""
    return int(os.environ.get("RANK", "0")) == 0


console = Console(stderr=True, quiet=not leads())
if not console.is_terminal:
    console = Console(stderr=True, width=120, quiet=not leads())  # a log file has no width: keep tables whole


class Tracker:
    """A handle on one progress bar; where there is no terminal, a line every half minute."""

    EVERY = 30.0  # seconds

    def __init__(self, progress: Progress, task: TaskID, unit: str) -> None:
        self._progress, self._id, self._unit = progress, task, unit
        self._said = time.monotonic()

    @property
    def _task(self) -> Task:
        return self._progress.tasks[0]

    def advance(self, n: float = 1) -> None:
        """Move on by `n` units."""
        self._progress.advance(self._id, n)
        if not console.is_terminal and time.monotonic() - self._said > self.EVERY:
            self._said = time.monotonic()
            self.say(f"of {self._task.total:.0f} " if self._task.total else "")

    def note(self, text: str) -> None:
        """Show `text` (a loss, a rate) at the end of the bar."""
        self._progress.update(self._id, note=text)

    def say(self, of: str = "") -> None:
        """Print where the work is, as a line."""
        task = self._task
        done = f"{task.completed:.0f} {of}{self._unit} in {task.elapsed or 0:.1f} s"
        console.print(f"{task.description}: {done} {task.fields['note']}")


@contextmanager
def track(description: str, total: float | None, unit: str) -> Iterator[Tracker]:
    """Show a progress bar of `total` `unit`s while the block runs (None: not known beforehand)."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=4) as progress:
        tracker = Tracker(progress, progress.add_task(description, total=total, note=""), unit)
        yield tracker
    if not console.is_terminal:
        tracker.say()


def quiet_libraries() -> None:
    """Silence the libraries' own bars and warnings: they would tear ours apart. Errors still come through."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
