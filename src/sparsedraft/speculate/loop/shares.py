"""Which source drafted how often, where look-up drafts beside a model, and how much of it was accepted."""

from collections.abc import Iterable
from typing import Any

SOURCES = ("lookup", "drafter", "plain")  # look-up, the model, and the target alone


def by_source(steps: Iterable[tuple[int | None, int, int]]) -> dict[str, list[int]]:
    """[steps, drafted, accepted] of each source, from (match, drafted, accepted) of each step as in `Step`."""
    counts = {source: [0, 0, 0] for source in SOURCES}
    for match, drafted, accepted in steps:
        source = "plain" if not drafted else "drafter" if match is None else "lookup"
        counts[source] = [a + b for a, b in zip(counts[source], (1, drafted, accepted), strict=True)]
    return counts


def shares(counts: dict[str, list[int]]) -> dict[str, Any]:
    """The share of the steps of each source; what drafts also has the drafts a step and the share accepted."""
    total = sum(steps for steps, *_ in counts.values())
    found: dict[str, Any] = {}
    for source, (steps, drafted, accepted) in counts.items():
        found[source] = {"share_of_steps": steps / total if total else 0.0}
        if source != "plain":
            found[source] |= {
                "drafted_per_step": drafted / steps if steps else 0.0,
                "acceptance_rate": accepted / drafted if drafted else 0.0,
            }
    return found
