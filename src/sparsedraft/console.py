"""Everything that is written for people: progress and tables, all on stderr, so that stdout stays for results."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)
if not console.is_terminal:
    console = Console(stderr=True, width=120)  # a log file has no width of its own: keep tables whole


class Tracker:
    """A handle on one progress bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, n: float = 1) -> None:
        """Move on by `n` units."""
        self._progress.advance(self._task, n)

    def note(self, text: str) -> None:
        """Show `text` (a loss, a rate) at the end of the bar."""
        self._progress.update(self._task, note=text)


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
    with Progress(*columns, console=console, transient=not console.is_terminal, refresh_per_second=4) as progress:
        yield Tracker(progress, progress.add_task(description, total=total, note=""))
    if not console.is_terminal:  # a log file gets one line for each bar instead of a thousand
        task = progress.tasks[0]
        console.print(f"{description}: {task.completed:.0f} {unit} in {task.elapsed or 0:.1f} s {task.fields['note']}")


def quiet_libraries() -> None:
    """Silence the libraries' own bars and warnings: they would tear ours apart. Errors still come through."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
