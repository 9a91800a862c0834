"""The advice for the terminal."""

from collections.abc import Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table

SHOWN = 6  # expected choices
ALL_TEXT = "all"  # of a drafter without a window


def tables(result: dict[str, Any]) -> Iterator[Table | str]:
    """What `advise` returned, as tables and sentences, the advice last."""
    yield _expected(result)
    yield _measured(result)
    other = result["other_kinds"] or {"target": [], "drafter": []}
    if other["target"]:
        yield _other_targets(other["target"])
    if other["drafter"]:
        yield _other_drafters(other["drafter"])
    if other["target"] or other["drafter"]:
        yield "the commands that make these are in the result, under other_kinds"
    advice = result["advice"]
    yield f"take {escape(advice['way'])}: {escape(advice['why'])}"
    yield escape(advice["command"])


def _table(title: str, *names: str) -> Table:
    table = Table(title=title)
    for index, name in enumerate(names):
        table.add_column(name, justify="left" if index == 0 else "right")
    return table


def _expected(result: dict[str, Any]) -> Table:
    plain = f"the target alone {result['target_tokens_per_second']:.1f} tokens/s"
    table = _table(f"expected on {result['prompts']} prompts, best K ({plain})", "drafter", "reads", "K", "MAL",
                   "tokens/s", "speed-up")  # fmt: skip
    for choice in result["expected"][:SHOWN]:
        table.add_row(
            escape(choice["drafter"]), str(choice["drafter_window"] or ALL_TEXT), str(choice["k"]),
            f"{choice['mal']:.2f}", f"{choice['tokens_per_second']:.1f}", speedup_text(choice),
        )  # fmt: skip
    return table


def _measured(result: dict[str, Any]) -> Table:
    table = _table("measured, in turns", "way", "tokens/s", "speed-up")
    for row in result["measured"]:
        table.add_row(escape(row["way"]), f"{row['tokens_per_second']:.1f}", speedup_text(row))
    return table


def _other_targets(rows: list[dict[str, Any]]) -> Table:
    table = _table("the target in other bits, estimated from its products alone", "kind", "tokens/s alone")
    for row in rows:
        table.add_row(row["kind"], f"{row['tokens_per_second']:.1f}")
    return table


def _other_drafters(rows: list[dict[str, Any]]) -> Table:
    title = "the drafter in other bits and patterns, estimated from its products alone"
    table = _table(title, "kind", "ms a draft", "pays if it keeps of MAL")
    for row in rows:
        table.add_row(row["kind"], f"{1e3 * row['draft_seconds']:.1f}", f"{row['mal_needed']:.0%}")
    return table


def speedup_text(row: dict[str, Any]) -> str:
    """A speed-up with its interval, which a single prompt does not have."""
    ends = row["speedup_interval"]
    return f"{row['speedup']:.2f}x" + (f" ({ends[0]:.2f}-{ends[1]:.2f})" if ends else "")
