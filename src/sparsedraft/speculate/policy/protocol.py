"""How a policy is asked, and what it is told of each step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Trial(NamedTuple):
    """What became of one sequence's draft; `match` is that of the draft."""

    row: int  # the sequence's index
    match: int | None
    drafted: int
    accepted: int


class Place(NamedTuple):
    """Where a sequence stands when it is chosen who drafts for it; lengths in tokens."""

    row: int  # the sequence's index
    match: int  # of what look-up found; 0: nothing
    limit: int  # of the draft
    prompt: int
    written: int
    room: int  # that may still be written
    behind: bool = False  # the model has more to read than a step may, and is not to be asked


class Choice(NamedTuple):
    """Who drafts for a sequence, and how many tokens at most: look-up after a match of `match` tokens, or (None) a
    model."""

    match: int | None
    n: int


@dataclass(frozen=True)
class Outcome:
    """What one step took and gave: means over its rows, times in seconds.

    `begins`: it is the first step of an answer. `prompt`: a model read its prompt in it. `late`: older tokens that the
    drafter read only in this step: of the prompt, or written while the drafter was not asked. `behind`: how many those
    would be in the next step. `read`: tokens of the prompt that the target read in this step. `room`: tokens that may
    still be written, 0 once the answer has ended; `full`: it ended because there was no room left. `trials`: each
    sequence's draft.

    `at_once`: the drafter that was asked writes all of a draft in one pass.

    Where look-up drafts beside a model, `asked`, `late` and `behind` are the model's.
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
    at_once: bool = False
    trials: tuple[Trial, ...] = ()

    @classmethod
    def of(cls, values: Sequence[Any]) -> "Outcome":
        """The inverse of `dataclasses.astuple` and JSON; older ones have less."""
        *plain, trials = values if isinstance(values[-1], list | tuple) else [*values, ()]
        return replace(cls(*plain), trials=tuple(Trial(*trial) for trial in trials))

    @property
    def looked_up(self) -> bool:
        """Whether there are drafts, and look-up beside a model made them all."""
        return any(t.drafted for t in self.trials) and all(t.match is not None for t in self.trials)

    @property
    def own(self) -> tuple[float, float]:
        """(drafted, accepted) without the sequences for which look-up drafted in a model's place."""
        if all(t.match is None for t in self.trials):
            return self.drafted, self.accepted
        own = [t for t in self.trials if t.match is None]
        return max((t.drafted for t in own), default=0), sum(t.accepted for t in own) / max(1, len(own))


class Policy(Protocol):
    """Decides, step by step, how many tokens to draft: `most` at the most."""

    @property
    def most(self) -> int: ...

    @property
    def plain(self) -> bool:
        """Whether the next step must draft nothing at all, to measure the target alone."""
        ...

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


@runtime_checkable
class SourcePolicy(Policy, Protocol):
    """Decides, too, which of two sources drafts for a sequence."""

    def choose(self, place: Place) -> Choice:
        """Who drafts for the sequence at that place; asked once a step."""
        ...

    def worth(self, place: Place) -> bool:
        """Whether a model's reading of the text is worth its time."""
        ...


def always(reach: float) -> bool:
    """The confidence rule that never stops, and for which `reach` need not be computed."""
    return True
