"""K policies on a clock that only models move: where no K pays, or a machine misleads, they lose almost nothing."""

import pytest

from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.decode import Decoder, generate
from sparsedraft.speculate.policy.budget import LossBudget
from sparsedraft.speculate.policy.policies import Auto, policy_named
from worlds import GREEDY, Cost, Moody, World, drafted, factor, flat

POLICIES = ["auto", "confidence", "bandit"]
SHARE = LossBudget.SHARE + LossBudget.READING_SHARE  # of the time, and plain steps, that may be lost in all
CREDIT = LossBudget.CREDIT + LossBudget.READING_CREDIT
HOPELESS: list[tuple[float, float, Cost]] = [  # (a, c, v) of worlds in which no K pays
    (0.0, 0.1, flat),
    (0.3, 0.5, flat),
    (0.7, 1.0, flat),
    (0.4, 0.1, lambda n: float(n)),
    (0.0, 3.0, flat),
    (0.5, 0.3, lambda n: 0.5 + 0.5 * n),
]
LATE = [(300, 0.0), (700, 0.1), (700, 0.3)]  # (tokens, what the drafter takes to read one)
PAIRS = [  # each policy meets each world, and each way to read late; each world meets each way
    (POLICIES[(i + j) % 3], *world, *late) for i, world in enumerate(HOPELESS) for j, late in enumerate(LATE)
]


@pytest.mark.parametrize(("name", "a", "c", "v", "n", "read"), PAIRS)
def test_where_speculation_loses_the_time_is_that_of_plain_decoding(
    name: str, a: float, c: float, v: Cost, n: int, read: float
) -> None:
    """At most SHARE of the time and CREDIT steps more, and what the last trials lose beyond what was expected, whether
    the text ends early or late; also where the drafter first reads what was written since it drafted last, at `read` of
    a draft's price a token."""
    assert all(factor(a, k, c, v) < factor(a, 0, c, v) for k in range(1, 9)), "no K pays"
    world = World(a, c, v, read=read * c)
    made = world.write(policy_named(name), n)
    early = next(progress for progress in world.progress if progress[0] >= 295)
    for tokens, seconds in (early, world.progress[-1]):
        assert seconds <= ((1 + SHARE) * tokens + CREDIT + 2) * v(1), f"after {tokens} tokens"
    assert drafted(made, 100)[0] > 75, "K = 0, but for trials"


@pytest.mark.parametrize("name", POLICIES)
def test_a_slow_first_step_of_the_target_does_not_make_speculation_look_good(name: str) -> None:
    """The first plain step, right after the prompt, takes 1.6 times what the others do."""
    passes = iter([1.0, 1.6])
    world = World(0.0, 0.1, lambda n: next(passes, 1.0))
    world.write(policy_named(name), 300)
    assert world.clock.now <= (1 + SHARE) * 300 + LossBudget.CREDIT + 4


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("at", [2, 40])
def test_a_step_that_the_machine_held_up_is_no_verdict(name: str, at: int) -> None:
    """One draft takes as long as a hundred plain steps (a page that was read in, a process that was stopped)."""
    world = World(0.9, 0.1)
    passes, cost = iter(range(10**6)), world.model.cost
    world.model.cost = lambda n: cost(n) + (100.0 if next(passes) == at else 0.0)
    made = world.write(policy_named(name), 700)
    assert next(passes) > at and world.clock.now > 100
    assert sum(len(step.drafted) > 1 for step in made.steps[-80:-10]) > 50
    world.model.cost = cost
    assert world.clock.now - 100 < 700 / 1.3, "hardly more than it took"


@pytest.mark.parametrize("times", [1.5, 2, 4])
@pytest.mark.parametrize("lasts", [3, 10, 30, 60])
@pytest.mark.parametrize("seed", range(3))
def test_a_neighbour_that_is_busy_for_a_while_does_not_end_the_drafts(times: float, lasts: float, seed: int) -> None:
    """Target and drafter alike are so many times slower for a while. No step then says that drafts lose by it."""

    worlds = {}
    for end in (100, 100 + lasts):
        world = worlds[end] = World(0.75, 0.27, lambda n: 1 + 0.04 * (n - 1), seed=seed)
        for model in (world.target, world.model):
            model.cost = _busy(model.cost, world, end, times)
        made = world.write(Auto(8), 700)
        starts = [0.0, *(now for _, now in world.progress)]
        after = [len(step.drafted) for step, start in zip(made.steps, starts, strict=False) if start >= end]
        assert sum(n > 0 for n in after) > 0.95 * len(after)
    alone, beside = (world.clock.now for world in worlds.values())
    assert beside < 1.05 * alone + lasts, "no more than the neighbour took"


def _busy(cost: Cost, world: World, end: float, times: float) -> Cost:
    """The price of a pass, so many times as much from 100 seconds on."""
    return lambda n: cost(n) * (times if 100 <= world.clock.now < end else 1)


def test_what_speculation_may_lose_before_it_has_shown_anything() -> None:
    """Two plain steps' time: the draft with the prompt, four of half a step each, and the one that goes beyond."""
    rule = Auto(1)
    rule.meter.estimates.PRIOR_ACCEPTANCE, rule.meter.estimates.PRIOR_DRAFTS = (
        0.999,
        1e6,
    )  # so that it drafts as long as it may
    made = World(0.0, 0.5).write(rule, 20)
    assert 5 <= sum(len(step.drafted) for step in made.steps) <= 6


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("at", [5, 6, 7, 9])
def test_a_pass_of_the_target_that_the_machine_held_up_is_no_verdict(name: str, at: int) -> None:
    """Also where it is the first of its number of drafts."""
    passes = iter(range(10**6))
    world = World(0.9, 0.1, lambda n: 1.0 + (100.0 if next(passes) == at else 0.0))
    world.write(policy_named(name), 1200)
    assert world.clock.now > 100 and world.clock.now - 100 < 1200 / 2.2


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("steps", "times"), [(3, 1.6), (6, 2.0), (12, 3.0)])
def test_a_target_that_warms_up_does_not_make_speculation_look_good(name: str, steps: int, times: float) -> None:
    """Its first steps take `times` as long as all others: beyond them a useless drafter costs little."""
    passes = iter(range(10**6))
    world = World(0.0, 0.1, lambda n: times if next(passes) < steps else 1.0)
    world.write(policy_named(name), 800)
    assert world.clock.now - steps * (times - 1) <= (1 + SHARE) * 800 + 14


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("length", "a", "c"), [(5, 0.0, 0.3), (20, 0.2, 0.5), (50, 0.2, 0.5)])
def test_many_short_answers_lose_no_more_than_a_long_one(name: str, length: int, a: float, c: float) -> None:
    """With one policy for all: their first steps count, too."""
    rule, seconds = policy_named(name), 0.0
    for seed in range(2000 // length):
        world = World(a, c, seed=seed)
        world.write(rule, length)
        seconds += world.clock.now
    assert seconds <= 1.03 * 2000


@pytest.mark.parametrize("name", POLICIES)
def test_a_long_good_time_does_not_pay_for_a_long_bad_one(name: str) -> None:
    rule = policy_named(name)
    for seed in range(4):
        World(0.95, 0.3, seed=seed).write(rule, 2500)
    world = World(0.0, 0.3)
    world.write(rule, 1000)
    assert world.clock.now < 1.06 * 1000


@pytest.mark.parametrize("name", POLICIES)
def test_a_long_prompt_that_the_drafter_reads_late_counts_for_nothing(name: str) -> None:
    """Its time is the prompt's: a hundred steps' worth of it does not stop a drafter that pays."""
    world = World(0.9, 0.05, prompt=100.0)
    before = world.clock.now
    world.write(policy_named(name), 600, prompt=60)
    assert world.clock.now - before - 100 < 600 / 1.8


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("read", [0.0, 0.01, 0.07])
def test_an_unsure_drafter_that_is_wrong_costs_little(name: str, read: float) -> None:
    """Also where confidence asks it again and again and gets no draft at all, and where it has much to read first."""
    world = Moody([0.2] * 1000, [False] * 1000, 0.3)
    world.model.cost = lambda n: 0.3 + read * (n - 1)
    rule = policy_named(name)
    drafter = ModelDrafter(world.model, GREEDY, confident=rule.confident)
    generate(Decoder(world.target, drafter, rule, GREEDY, clock=world.clock), [0], 400)
    assert world.clock.now <= 1.03 * 400


@pytest.mark.parametrize("name", ["auto", "confidence"])
@pytest.mark.parametrize("times", [2.0, 3.0])
def test_a_machine_that_was_busy_at_first_is_no_verdict(name: str, times: float) -> None:
    """In the first answer drafts, and passes that verify them, take several times as long as later, and plain steps
    longer, too: after 600 tokens of later answers the drafter is used."""
    rule = policy_named(name)
    World(0.7, 0.3 * times, lambda n: 0.7 * times if n == 1 else times, read=0.02).write(rule, 16, prompt=30)
    for seed, tokens in enumerate((46, 16, 35, 16, 128, 35, 64, 128, 128, 128)):
        world = World(0.7, 0.3, lambda n: 1 + 0.04 * (n - 1), seed=seed, read=0.02)
        world.write(rule, tokens, prompt=30)
    assert world.clock.now < 130 / 1.1, "the last answer"
