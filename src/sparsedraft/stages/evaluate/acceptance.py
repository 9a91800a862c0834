"""The acceptance histogram: how many drafts each step accepted. All else about acceptance is derived from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsedraft.speculate.loop.sequence import Step


@dataclass
class Histogram:
    """`counts[a]` steps accepted a of their at most K drafts; `drafted` and `tokens` (emitted) are totals.

    Whole numbers where steps were counted, not where they are expectations.
    """

    k: int
    counts: list[float] = field(default_factory=list)
    drafted: float = 0
    tokens: float = 0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (self.k + 1)

    @classmethod
    def of_steps(cls, steps: Sequence[Step], k: int) -> "Histogram":
        """The histogram of the real loop's steps."""
        histogram = cls(k)
        for step in steps:
            histogram.add(step.accepted, len(step.drafted), len(step.emitted))
        return histogram

    def add(self, accepted: int, drafted: int, emitted: int, chance: float = 1) -> None:
        """Count one step, or the `chance` of one."""
        self.counts[accepted] += chance
        self.drafted += chance * drafted
        self.tokens += chance * emitted

    def __add__(self, other: "Histogram") -> "Histogram":
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return Histogram(self.k, counts, self.drafted + other.drafted, self.tokens + other.tokens)

    @property
    def steps(self) -> float:
        return sum(self.counts)

    @property
    def accepted(self) -> float:
        return sum(a * count for a, count in enumerate(self.counts))

    @property
    def mal(self) -> float:
        """Mean accepted length: tokens emitted per step, the target's own included; a cut-off step as it was."""
        return self.tokens / self.steps

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted; 0 where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "drafted": self.drafted, "tokens": self.tokens}

    @classmethod
    def from_dict(cls, k: int, data: dict[str, Any]) -> "Histogram":
        return cls(k, list(data["counts"]), data["drafted"], data["tokens"])
