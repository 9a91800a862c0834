"""The time of each part of a step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Times:
    """Seconds of each part of the loop: `verify` is the target's forward, `rest` is everything else in Python."""

    draft: float = 0.0
    verify: float = 0.0
    rollback: float = 0.0
    sampling: float = 0.0
    rest: float = 0.0

    @property
    def total(self) -> float:
        return self.draft + self.verify + self.rollback + self.sampling + self.rest

    def add(self, other: "Times") -> None:
        """Add the seconds of `other`."""
        self.draft += other.draft
        self.verify += other.verify
        self.rollback += other.rollback
        self.sampling += other.sampling
        self.rest += other.rest


class Stopwatch:
    """Splits the time since it was made into laps, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.start = self.last = clock()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.last = self.last, self.clock()
        return self.last - before

    @property
    def total(self) -> float:
        """Seconds from the start to the last lap."""
        return self.last - self.start


def synchronized(logits: list[Tensor]) -> list[Tensor]:
    """`logits`, once they are computed: an accelerator returns earlier, and its work would count as the next lap's."""
    if logits[0].device.type != "cpu":
        torch.accelerator.synchronize(logits[0].device)
    return logits
