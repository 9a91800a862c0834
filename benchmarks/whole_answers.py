"""Whole answers: what answers a prompt, how ways to do so take turns, and how they compare.

Every way answers a prompt before the next prompt comes.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from common import IDLE
from peers import Missing
from peers_server import Answer
from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.base.hashing import text_hash
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.tokenizers import templates
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.protocol import Outcome, Policy
from sparsedraft.speculate.policy.sources import WithLookup
from sparsedraft.stages.evaluate.bootstrap import ratio_interval, resampled
from sparsedraft.stages.generate.measured import Measured
from sparsedraft.text import prompts

CHOOSING, SHORT = 4, 96  # prompts on which drafters and K are chosen, and tokens of their answers

Way = Callable[[list[int], int], Answer]  # one way to answer a prompt's ids, in so many tokens at most
Keep = Callable[[list[dict[str, Any]]], None]  # gets all rows so far


@dataclass(frozen=True)
class Task:
    """The prompts' ids, to measure on and to choose on, and the most tokens of an answer."""

    measured: list[list[int]]
    choosing: list[list[int]]
    tokens: int
    short: int  # the same where something is chosen

    @classmethod
    def of(cls, source: str, count: int, tokens: int, tokenizer: Any) -> "Task":
        """`count` prompts of `source` at equal distances; those of the choice are others, of `demo:eval`."""
        chosen = prompts.spread(prompts.read(source), count)
        names = {prompt.turns[0] for prompt in chosen}
        others = [prompt for prompt in prompts.read("demo:eval") if prompt.turns[0] not in names]
        if not others:
            raise UserError(f"--limit {count} leaves no prompt of demo:eval to choose on: lower it, or give --prompts.")
        few = prompts.spread(others, min(CHOOSING, count))
        ids = [[templates.chat_ids(tokenizer, prompt.messages()) for prompt in each] for each in (chosen, few)]
        return cls(ids[0], ids[1], tokens, min(SHORT, tokens))


@dataclass(frozen=True)
class OwnAnswer(Answer):
    """An answer of ours, with the seconds of its parts; `text` is a digest of its tokens.

    `steps` are passes of the target, `looked_up` those whose drafts look-up made. Of the `later` ones, in which no
    model read its prompt: `verifying` and `drafting` are seconds, `drafts` are tokens that a model drafted.
    """

    text: str = ""
    steps: int = 0
    looked_up: int = 0
    target_reading: float = 0.0  # seconds of the pass that reads the prompt
    drafter_reading: float = 0.0  # seconds in which the drafter reads what it reads of the prompt
    later: int = 0
    verifying: float = 0.0
    drafts: float = 0.0
    drafting: float = 0.0  # with what the drafter catches up on


class _Watched(Measured):
    """A policy, and the outcomes that it has observed since they were last taken."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.outcomes: list[Outcome] = []

    def observe(self, outcome: Outcome) -> None:
        super().observe(outcome)
        self.outcomes.append(outcome)


class Own:
    """One of our pairs, or a target alone, under a policy, which learns from answer to answer as `generate` does."""

    def __init__(self, pair: Pair, policy: Policy) -> None:
        self.pair, self._watched = pair, _Watched(WithLookup(policy) if pair.lookup else policy)

    def __call__(self, ids: list[int], tokens: int) -> OwnAnswer:
        """The greedy answer to the prompt `ids`."""
        self._watched.outcomes = []
        start = time.perf_counter()
        decoder = self.pair.decoder([self.pair.prompt_pair(ids)], self._watched, Sampling())
        text = generate(decoder, ids, tokens)
        taken = time.perf_counter() - start
        drafted, accepted = (sum(map(of, text.steps)) for of in (lambda s: len(s.drafted), lambda s: s.accepted))
        parts = parts_of(self._watched.outcomes)
        digest = text_hash(" ".join(map(str, text.tokens)))[:16]
        return OwnAnswer(len(text.tokens), taken, drafted, accepted, digest, **parts)


def parts_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The parts of an answer, from the outcomes of its steps: the fields of OwnAnswer from `steps` on."""
    reading, later = ([o for o in outcomes if o.prompt is reads] for reads in (True, False))
    drafts, drafting = sum(o.own[0] for o in later), sum(o.draft_seconds for o in later if o.asked or o.drafted)
    price = drafting / drafts if drafts else 0.0  # of a draft; those of a step that reads are no reading
    return {
        "steps": len(outcomes),
        "looked_up": sum(o.looked_up for o in outcomes),
        "target_reading": sum(o.step_seconds - o.draft_seconds for o in outcomes if o.begins),
        "drafter_reading": sum(max(0.0, o.draft_seconds - price * o.own[0]) for o in reading if o.asked),
        "later": len(later),
        "verifying": sum(o.step_seconds - o.draft_seconds for o in later),
        "drafts": drafts,
        "drafting": drafting,
    }


def take_turns(
    ways: Mapping[str, Way], asked: Sequence[list[int]], tokens: int | Sequence[int], keep: Keep
) -> list[dict[str, Any]]:
    """A row by prompt and way, {"prompt", "way", "tokens", "seconds", ...}; `keep` gets all rows after each prompt.

    `tokens`: the most of an answer, of all or of each.
    """
    rows: list[dict[str, Any]] = []
    limits = [tokens] * len(asked) if isinstance(tokens, int) else tokens
    for number, (ids, most) in enumerate(zip(asked, limits, strict=True)):
        console.print(f"prompt {number + 1} of {len(asked)}", style="dim")
        for name, way in ways.items():
            time.sleep(IDLE)
            rows.append({"prompt": number, "way": name, **asdict(way(ids, most))})
        keep(rows)
    return rows


def speeds(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Tokens a second of each way, over all its prompts."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        total = sums.setdefault(row["way"], [0.0, 0.0])
        total[0], total[1] = total[0] + row["tokens"], total[1] + row["seconds"]
    return {name: tokens / seconds for name, (tokens, seconds) in sums.items()}


def best(speed: Mapping[str, float], kind: str) -> str:
    """The fastest way whose name begins so."""
    return max((name for name in speed if name.startswith(kind)), key=lambda name: speed[name])


@contextmanager
def leaving_out(name: str) -> Iterator[None]:
    """Go on without what is missing, and say so."""
    try:
        yield
    except Missing as why:
        console.print(f"left out: {name}: {why}", soft_wrap=True, markup=False)


def ratio(rows: Sequence[Mapping[str, Any]], name: str, other: str) -> tuple[float, list[float]]:
    """(tokens a second of the way `name` / those of `other`, the 95 % interval over prompts)."""
    columns = [("tokens", name), ("seconds", name), ("tokens", other), ("seconds", other)]
    picks = [lambda row, key=key, way=way: row[key] * (row["way"] == way) for key, way in columns]
    a, a_seconds, b, b_seconds = resampled([dict(row) for row in rows], *picks)
    speed = speeds(rows)
    value = speed[name] / speed[other]
    return value, ratio_interval(value, (a / a_seconds) / (b / b_seconds), len({row["prompt"] for row in rows}))
