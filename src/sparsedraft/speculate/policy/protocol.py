"""How a policy is asked, and what it is told of each step."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Outcome:
    """What one step took and gave: means over its rows, times in seconds.

    `begins`: it is an answer's first; `prompt`: a model read its prompt in it, too. `late`: tokens that the drafter
    read only now, of the prompt or because it was not asked when they were written; `behind`: so many would the next
    step's be. A drafter that has not read the prompt is not behind.
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


class Policy(Protocol):
    """Decides, step by step, how many tokens to draft."""

    def wanted(self) -> int:
        """At most how many in the next step."""
        ...

    def confident(self, reach: float) -> bool:
        """Whether to draft a token that is accepted with probability `reach`, by the drafter's own reckoning."""
        ...

    def observe(self, outcome: Outcome) -> None:
        """Learn from a step."""
        ...


def always(reach: float) -> bool:
    """The confidence rule that never stops; whoever sees it need not know `reach`."""
    return True
