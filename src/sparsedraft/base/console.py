"""Everything that is written for people: progress and tables, all on stderr, so that stdout is free for results.

Names, ids and paths come from users and files. So no text is read as markup and no character steers the terminal;
`style` alone makes text dim or bold.
"""

import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID


def leads() -> bool:
    """Whether this process is alone, or the first of several that a launcher started: only that one writes."""
    return int(os.environ.get("RANK", "0")) == 0


# control characters other than tab and line feed, marks of writing direction, and halves of surrogate pairs
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with every character that would steer a terminal written as an escape, such as \\x1b."""
    return STEERING.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class _Plain(Console):
    """A console that prints a string, also in a table or a rule, as nothing but its visible characters."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})


console: Console = _Plain(stderr=True, quiet=not leads(), markup=False, emoji=False)
if not console.is_terminal:  # a log file has no width: keep tables whole
    console = _Plain(stderr=True, width=120, quiet=not leads(), markup=False, emoji=False)


def complain(text: str) -> None:
    """Print `text`, a sentence that says what is wrong."""
    console.print(Text.assemble(("error:", "bold red"), " ", visible(text)), soft_wrap=True)


class Tracker:
    """A handle on one progress bar; without a terminal it prints a line every half minute."""

    EVERY = 30.0  # seconds

    def __init__(self, progress: "Progress", task: "TaskID", unit: str) -> None:
        self._progress, self._id, self._unit = progress, task, unit
        self._last_line = time.monotonic()

    @property
    def _task(self) -> "Task":
        return self._progress.tasks[0]

    def advance(self, n: float = 1) -> None:
        """Move on by `n` units."""
        self._progress.advance(self._id, n)
        if not console.is_terminal and time.monotonic() - self._last_line > self.EVERY:
            self._last_line = time.monotonic()
            self.say(f"of {self._task.total:.0f} " if self._task.total else "")

    def note(self, text: str) -> None:
        """Show `text` (a loss, a rate) at the end of the bar."""
        self._progress.update(self._id, note=visible(text))

    def say(self, of: str = "") -> None:
        """Print how far the work is, as a line."""
        task = self._task
        done = f"{task.completed:.0f} {of}{self._unit} in {task.elapsed or 0:.1f} s"
        console.print(f"{task.description}: {done} {task.fields['note']}")


@contextmanager
def track(description: str, total: float | None, unit: str) -> Iterator[Tracker]:
    """Show a progress bar of `total` units while the block runs; None: their number is not known beforehand."""
    from rich.progress import (  # which most commands that end in an error never need
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=4) as progress:
        tracker = Tracker(progress, progress.add_task(visible(description), total=total, note=""), unit)
        yield tracker
    if not console.is_terminal:
        tracker.say()


QUIET = {  # what each library reads of the environment as it is imported
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",  # retries are silent; the last error is ours to say
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def quiet_libraries() -> None:
    """Silence the libraries' own bars and warnings, which would break up ours; their errors still come through.

    None is imported here, as each takes a second. So this must come before they are.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
