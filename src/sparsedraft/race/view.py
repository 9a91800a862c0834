"""The race for the terminal: each lane's text with its accepted drafts in colour, all at once, at their own speeds."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sparsedraft.base.console import visible
from sparsedraft.race.lane import Event, Lane

ACCEPTED = "bold green"  # text of accepted drafts; the target's own is plain
FRAMES = 20  # a second
NARROWEST = 28  # columns of a lane


def text_of(events: Sequence[Event]) -> Text:
    """What the steps wrote, accepted drafts in colour."""
    text = Text()
    for event in events:
        drafts, own = event.piece.from_drafts, event.piece.text[len(event.piece.from_drafts) :]
        text.append(visible(drafts), style=ACCEPTED)
        text.append(visible(own))
    return text


def frame(lanes: Sequence[Lane], seconds: float, width: int, height: int) -> Columns:
    """All lanes as they were after so many seconds, in `width` columns and `height` lines."""
    each = max(NARROWEST, width // max(1, len(lanes)) - 1)
    return Columns([_panel(lane, seconds, each, height) for lane in lanes], padding=0)


def _panel(lane: Lane, seconds: float, width: int, height: int) -> Panel:
    events = lane.until(seconds)
    tokens, at = sum(event.tokens for event in events), min(seconds, lane.seconds)
    lines = text_of(events).wrap(Console(width=width - 4), width - 4)
    shown = Text("\n").join(lines[-(height - 2) :])  # the end of a text that does not fit
    title = f"{visible(lane.name)}: {tokens / at if at else 0:.1f} tokens/s"
    subtitle = f"{tokens} tokens, {tokens / max(1, len(events)):.2f} a step"
    done = len(events) == len(lane.events)
    return Panel(
        shown, title=title, subtitle=subtitle, width=width, height=height, border_style="green" if done else "dim"
    )


def replay(
    lanes: Sequence[Lane], console: Console, clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> None:  # fmt: skip
    """Show all lanes at once as they were written, until the last one has ended."""
    height, width = max(6, min(24, console.height - 4)), console.width
    end, start = max(lane.seconds for lane in lanes), clock()
    with Live(frame(lanes, 0.0, width, height), console=console, refresh_per_second=FRAMES) as live:
        while (now := clock() - start) < end:
            live.update(frame(lanes, now, width, height))
            sleep(1 / FRAMES)
        live.update(frame(lanes, end, width, height))


def table(result: dict[str, Any]) -> Table:
    """The figures of a race's result."""
    found = Table(title="whole answers, the prompt's reading included")
    for index, name in enumerate(("", "tokens/s", "against alone", "tokens a step", "seconds", "text")):
        found.add_column(name, justify="left" if index == 0 else "right")
    for row in result["lanes"]:
        same = "the target's own" if row["equal"] else "DIFFERS"
        found.add_row(
            row["name"], f"{row['tokens_per_second']:.1f}", f"{row['speedup']:.2f}x", f"{row['mal']:.2f}",
            f"{row['seconds']:.1f}", same,
        )  # fmt: skip
    return found
