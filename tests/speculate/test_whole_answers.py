"""`auto` on whole answers, the reading of the prompts included, on a clock that only models move.

Forty short and long answers behind short and long prompts, one policy for all: against the target alone, and against
the best fixed K. An empty start, and a start from what such a run left.
"""

import random
from functools import cache
from typing import NamedTuple

import pytest

from sparsedraft.speculate.policy.budget import LossBudget
from sparsedraft.speculate.policy.kept import KeptState, give, state_of
from sparsedraft.speculate.policy.policies import Auto, Constant
from sparsedraft.speculate.policy.protocol import Policy
from worlds import World

ROOM = 256
FIXED = 3, 4, 6
LONGER = 0.02  # than the target alone, beside the credit
BEHIND = 0.04  # the best fixed choice
TRIALS = 3  # plain steps that the last trials may take beyond what was expected


class Answer(NamedTuple):
    prompt: int
    tokens: int


class Kind(NamedTuple):
    """Seconds of a plain step are 1. `read`, `target_read`: of a token of the prompt."""

    a: float
    c: float
    read: float
    target_read: float = 0.05


SETS = {
    "short prompts": ((30, 60, 100), (10, 20, 60, 200, ROOM)),
    "all prompts": ((40, 100, 400, 3000), (10, 20, 60, 200, ROOM)),
    "long prompts, short answers": ((3000,), (10, 20, 30)),
}
BEST, CHEAP = Kind(0.85, 0.2, 0.015), Kind(0.9, 0.08, 0.004)
WORST, DEAR = Kind(0.0, 0.33, 0.02), Kind(0.02, 1.0, 0.05)


@cache
def answers(name: str, seed: int) -> tuple[Answer, ...]:
    rng, (prompts, lengths) = random.Random(seed), SETS[name]
    return tuple(Answer(rng.choice(prompts), rng.choice(lengths)) for _ in range(40))


def cost(kind: Kind, n: int) -> float:
    """Seconds of the target's pass over n tokens: each draft takes a little, many are read at once."""
    return 1 + 0.04 * (n - 1) if n <= 9 else 1 + kind.target_read * n


def seconds(policy: Policy, kind: Kind, name: str, seed: int) -> float:
    total = 0.0
    for i, (prompt, tokens) in enumerate(answers(name, seed)):
        world = World(kind.a, kind.c, lambda n: cost(kind, n), seed=seed + i, read=kind.read)
        world.write(policy, min(tokens, ROOM), prompt=prompt, room=ROOM)
        total += world.clock.now
    return total


@cache
def plain(kind: Kind, name: str, seed: int) -> float:
    return seconds(Constant(0), kind, name, seed)


@cache
def learned(kind: Kind, name: str) -> tuple[float, str]:
    """(seconds of `auto` from an empty start, what it learned, as it is kept)."""
    rule = Auto(8)
    return seconds(rule, kind, name, 0), state_of(rule.meter).model_dump_json()


def runs(kind: Kind, name: str) -> list[tuple[str, float, int]]:
    """(which start, seconds of `auto`, seed of its answers)."""
    rule = Auto(8)
    empty, text = learned(kind, name)
    give(KeptState.model_validate_json(text), rule.meter)
    return [("empty", empty, 0), ("kept", seconds(rule, kind, name, 1), 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", [BEST, CHEAP, WORST, DEAR], ids=["best", "cheap", "worst", "dear"])
def test_it_is_never_much_slower_than_the_target_alone(kind: Kind, name: str) -> None:
    for start, took, seed in runs(kind, name):
        credit = LossBudget.CREDIT + LossBudget.READING_CREDIT + TRIALS if start == "empty" else TRIALS
        assert took <= (1 + LONGER) * plain(kind, name, seed) + credit, start


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", [BEST, CHEAP], ids=["best", "cheap"])
def test_it_is_near_the_best_fixed_choice(kind: Kind, name: str) -> None:
    for start, took, seed in runs(kind, name):
        best = min(plain(kind, name, seed), *(seconds(Constant(k), kind, name, seed) for k in FIXED))
        assert took <= (1 + BEHIND) * best, start


def test_a_long_prompt_and_a_short_answer_do_not_pay_for_the_reading() -> None:
    """3,000 tokens behind which answers have 20: once known, the drafter is not asked."""
    rule = Auto(8)
    for seed in range(6):
        World(0.9, 0.2, lambda n: cost(BEST, n), seed=seed, read=BEST.read).write(rule, 20, prompt=50, room=ROOM)
    for seed in range(4):
        world = World(0.9, 0.2, lambda n: cost(BEST, n), seed=seed, read=BEST.read)
        world.write(rule, 20, prompt=3000, room=ROOM)
        assert world.model.passes == 0
    world = World(0.9, 0.2, lambda n: cost(BEST, n), read=BEST.read)
    world.write(rule, 20, prompt=50, room=ROOM)
    assert world.model.passes > 5


def test_the_first_answer_starts_from_what_the_last_run_learned() -> None:
    rule, again = Auto(8), Auto(8)
    for seed in range(6):
        World(0.9, 0.1, lambda n: cost(BEST, n), seed=seed, read=0.002).write(rule, 100, prompt=50)
    give(KeptState.model_validate_json(state_of(rule.meter).model_dump_json()), again.meter)
    made = World(0.9, 0.1, lambda n: cost(BEST, n), seed=9, read=0.002).write(again, 60, prompt=50)
    assert len(made.steps[0].drafted) > 3
    useless, again = Auto(8), Auto(8)
    for seed in range(6):
        World(0.0, 0.4, lambda n: cost(WORST, n), seed=seed, read=0.02).write(useless, 100, prompt=50)
    give(state_of(useless.meter), again.meter)
    made = World(0.0, 0.4, lambda n: cost(WORST, n), seed=9, read=0.02).write(again, 60, prompt=50)
    assert sum(len(step.drafted) for step in made.steps) <= 3


def test_a_machine_of_another_speed_is_measured_again() -> None:
    """What was learned on an idle machine does not mislead on one where all takes three times as long."""
    rule, again = Auto(8), Auto(8)
    for seed in range(4):
        World(0.9, 0.1, seed=seed).write(rule, 200, prompt=50)
    give(state_of(rule.meter), again.meter)
    world = World(0.9, 0.3, lambda n: 3.0)
    world.write(again, 400)
    assert world.clock.now < 3 * 400 / 2
