"""One racer: what it writes, and when."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.stages.generate.texts import TextGenerator, TextPiece, load_pair
from sparsedraft.writers.loaded import LoadedModel


@dataclass(frozen=True)
class Event:
    """What one step wrote, and when: seconds from the prompt's first token on, its tokens, and its piece of text."""

    seconds: float
    tokens: int
    piece: TextPiece


@dataclass
class Lane:
    """A racer and what it wrote, step by step."""

    name: str
    events: list[Event] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Until the last token."""
        return self.events[-1].seconds if self.events else 0.0

    @property
    def tokens(self) -> int:
        return sum(event.tokens for event in self.events)

    def until(self, seconds: float) -> list[Event]:
        """The events up to that time."""
        return [event for event in self.events if event.seconds <= seconds]

    def to_dict(self) -> dict[str, Any]:
        """Its figures; tokens per second are those of the whole answer, the prompt's reading included."""
        return {
            "name": self.name,
            "tokens": self.tokens,
            "steps": len(self.events),
            "mal": self.tokens / max(1, len(self.events)),
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else 0.0,
            "text": "".join(event.piece.text for event in self.events),
        }


def run(
    name: str, options: GenerateOptions, target: LoadedModel, on_event: Callable[[Event], object] = lambda _: None
) -> Lane:
    """The lane of `target` with the drafter of `options`. The drafter is loaded and both are woken up before the start.

    UserError as `load_pair` raises it.
    """
    pair = load_pair(options, target)
    for _ in TextGenerator(pair, options.model_copy(update={"max_new_tokens": 2, "learned": "off"})).pieces():
        pass  # memory that is touched for the first time is slow
    generator, lane = TextGenerator(pair, options), Lane(name)
    start, written = time.perf_counter(), 0
    for piece in generator.pieces():
        tokens = piece.accepted + 1 if not generator.texts[0].token_ids else len(generator.texts[0].token_ids) - written
        written += tokens
        event = Event(time.perf_counter() - start, tokens, piece)
        lane.events.append(event)
        on_event(event)
    lane.token_ids = generator.texts[0].token_ids
    return lane
