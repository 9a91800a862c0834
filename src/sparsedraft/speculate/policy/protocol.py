"""How a policy is asked, and what it is told of each step."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Outcome:
    """What one step took and gave: means over its rows, times in seconds.

    `begins`: it is the first step of an answer. `prompt`: a model read its prompt in it. `late`: older tokens that the
    drafter read only in this step: of the prompt, or written while the drafter was not asked. `behind`: how many those
    would be in the next step. `read`: tokens of the prompt that the target read in this step. `room`: tokens that may
    still be written, 0 once the answer has ended; `full`: it ended because there was no room left.
    """

    drafted: float
    accepted: float
    emitted: float
    draft_seconds: float
    step_seconds: float  # drafting included
    asked: bool = False  # whether the drafter was, though it may have drafted nothing
    begins: bool = False
    prompt: bool = False
    late: int = 0
    behind: int = 0
    rows: int = 1
    read: int = 0
    room: int = 0
    full: bool = False


class Policy(Protocol):
    """Decides, step by step, how many tokens to draft."""

    def begin(self, prompt: int, room: int) -> None:
        """An answer begins. `prompt`: tokens that the drafter has to read first, 0 for one that reads none; `room`: the
        most tokens that the answer can have."""
        ...

    def next_k(self) -> int:
        """The most tokens to draft in the next step."""
        ...

    def confident(self, reach: float) -> bool:
        """Whether to draft one more token; `reach` is the drafter's estimate of the probability that it is accepted."""
        ...

    def observe(self, outcome: Outcome) -> None:
        """Learn from a step."""
        ...


def always(reach: float) -> bool:
    """The confidence rule that never stops, and for which `reach` need not be computed."""
    return True
