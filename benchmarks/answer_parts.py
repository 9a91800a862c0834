"""Where the time of answers goes: the parts of our ways, and how two of them compare part by part."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import rich.table

from record import Table
from sparsedraft.base.console import console
from whole_answers import ratio, speeds

PARTS = {  # of an OwnAnswer, and what each is called for people
    "tokens_per_second": "tokens/s",
    "mal": "MAL",
    "drafted": "drafted a step",
    "looked_up": "by look-up",
    "c": "c",
    "v": "v",
    "drafter_reading": "drafter reads, s",
    "target_reading": "target reads, s",
}
Parts = dict[str, float]


def by_parts(rows: Sequence[Mapping[str, Any]], alone: str) -> dict[str, Parts]:
    """The parts of each way over all its answers; `alone` is the target's, and its plain steps the unit of c and v.

    `mal`: tokens of a step, `drafted`: tokens drafted in it, `looked_up`: the share of steps whose draft look-up made,
    `c`: seconds of drafting a token, and `v` of verifying a step, in plain steps; readings are seconds of a prompt.
    Ways without parts, which another build measured, are left out.
    """
    sums: dict[str, dict[str, float]] = {}
    for row in rows:
        if "steps" in row:
            total = sums.setdefault(row["way"], {"prompts": 0})
            total["prompts"] += 1
            for key, value in row.items():
                if isinstance(value, (int, float)) and key != "prompt":
                    total[key] = total.get(key, 0.0) + value
    plain = _ratio(sums[alone]["verifying"], sums[alone]["later"])
    return {
        way: {
            "tokens_per_second": _ratio(s["tokens"], s["seconds"]),
            "mal": _ratio(s["tokens"], s["steps"]),
            "drafted": _ratio(s["drafted"], s["steps"]),
            "looked_up": _ratio(s["looked_up"], s["steps"]),
            "c": _ratio(_ratio(s["drafting"], s["drafts"]), plain),
            "v": _ratio(_ratio(s["verifying"], s["later"]), plain),
            "drafter_reading": _ratio(s["drafter_reading"], s["prompts"]),
            "target_reading": _ratio(s["target_reading"], s["prompts"]),
        }
        for way, s in sums.items()
    }


def part_ratios(parts: Mapping[str, Parts], name: str, other: str) -> Parts:
    """Part by part, the way `name` / the way `other`; without parts that the other does not have."""
    return {key: round(parts[name][key] / value, 3) for key, value in parts[other].items() if value}


def show(title: str, parts: Mapping[str, Parts]) -> None:
    """Print the parts as a table, a way a line."""
    table = rich.table.Table(title=title)
    table.add_column("way")
    for label in PARTS.values():
        table.add_column(label, justify="right")
    for way, values in parts.items():
        table.add_row(way, *(f"{values[key]:.2f}" for key in PARTS))
    console.print(table)


class Answers:
    """What was measured of one group's ways, of which `alone` is the target's, and the rows that come of it."""

    def __init__(self, group: str, rows: Sequence[Mapping[str, Any]], alone: str, table: Table) -> None:
        self.group, self.rows, self.alone, self.table = group, rows, alone, table
        self.parts = by_parts(rows, alone)

    def compare(self, label: str, name: str, other: str, goal: float) -> None:
        """A row: tokens a second of the way `name` / those of `other`, with the interval and the ratio by parts."""
        value, span = ratio(self.rows, name, other)
        figures: dict[str, Any] = {"pair": name, "other": other, "interval": [round(end, 3) for end in span]}
        if name in self.parts and other in self.parts:
            figures["parts"] = part_ratios(self.parts, name, other)
        self.table.ratio(f"{self.group}: {label}", value, goal, **figures)

    def note_ratio(self, name: str, other: str) -> float:
        """The same as a figure without a goal."""
        value, span = ratio(self.rows, name, other)
        figures = {"interval": [round(end, 3) for end in span], "parts": part_ratios(self.parts, name, other)}
        self.table.note(f"{self.group}: {name} / {other}", value, **figures)
        return value

    def note_speeds(self) -> None:
        """A figure for each way."""
        for name, rate in speeds(self.rows).items():
            parts = {key: round(value, 3) for key, value in self.parts.get(name, {}).items()}
            self.table.note(f"{self.group}: {name}, tokens/s", rate, **parts)

    def texts(self) -> None:
        """A row: answers whose text is the target's own, of all that our pairs wrote."""
        own = {row["prompt"]: row["text"] for row in self.rows if row["way"] == self.alone}
        same = [row["text"] == own[row["prompt"]] for row in self.rows if "text" in row and row["way"] != self.alone]
        self.table.ratio(f"{self.group}: answers that are the target's own text", statistics.mean(same), 1.0)


def _ratio(over: float, under: float) -> float:
    return over / under if under else 0.0
