"""K policies on a clock that only models move: they find the K that pays, and use it."""

from collections import Counter

import pytest

from sparsedraft.speculate.drafters.lookup import PromptLookup
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.decode import Decoder, generate
from sparsedraft.speculate.policy.kept import KeptState, give, state_of
from sparsedraft.speculate.policy.policies import NAMES, Auto, Bandit, Confidence, Constant, policy_named
from sparsedraft.speculate.policy.protocol import Outcome
from sparsedraft.stages.evaluate.speedup import expected_length
from toys import Table
from worlds import GREEDY, RIGHT, Cost, Moody, World, drafted, factor, flat


@pytest.mark.parametrize(
    ("a", "c", "v"),
    [
        (0.9, 0.05, flat),
        (0.8, 0.1, flat),
        (0.7, 0.2, flat),
        (0.5, 0.1, lambda n: 1 + 0.02 * n),
        (0.8, 0.15, lambda n: 1 + 0.1 * n),
        (0.95, 0.02, lambda n: 1.0 if n <= 4 else 2.5),  # kernels that take four tokens as fast as one
        (0.6, 0.05, lambda n: 0.7 + 0.3 * n),
    ],
)
def test_auto_finds_the_best_k_of_the_closed_formula(a: float, c: float, v: Cost) -> None:
    """(1 - a^(K+1)) / (1 - a) / (v + K c), c and v measured by the clock, a from what was accepted."""
    world, rule = World(a, c, v), Auto(8)
    found = drafted(world.write(rule, 1200), 150)
    best = max(range(9), key=lambda k: factor(a, k, c, v))
    usual = found.most_common(1)[0][0]
    assert factor(a, usual, c, v) > 0.98 * factor(a, best, c, v), f"{usual} for {best}"
    assert abs(usual - best) <= 1
    assert rule.meter.estimates.costs.draft.value == pytest.approx(c) and rule.meter.estimates.plain == pytest.approx(
        v(1)
    )


@pytest.mark.parametrize(
    ("a", "c", "read", "v"),
    [
        (0.9, 0.4, 0.0, flat),
        (0.8, 0.5, 0.02, lambda n: 1 + 0.02 * n),
        (0.7, 0.3, 0.05, lambda n: 1 + 0.05 * n),
        (0.8, 0.4, 0.0, lambda n: 1.0 if n <= 4 else 2.5),
        (0.3, 0.9, 0.0, flat),
    ],
)
def test_auto_finds_the_best_k_of_drafts_in_one_pass(a: float, c: float, read: float, v: Cost) -> None:
    """A pass costs c, and `read` more for each further token, whatever K is: token by token such a c were too much."""
    world, rule = World(a, c, v, read=read), Auto(8)
    world.at_once = True
    found = drafted(world.write(rule, 1200), 150)

    def of(k: int) -> float:
        again = expected_length(a, k) - 1  # accepted tokens are read as they are in the next pass
        return expected_length(a, k) / (v(k + 1) + (c + read * (again + k - 1) if k else 0))

    best = max(range(9), key=of)
    usual = found.most_common(1)[0][0]
    assert of(usual) > 0.97 * of(best), f"{usual} for {best}"
    assert usual > 1 or best <= 1
    if best:
        assert rule.meter.estimates.drafting(usual) == pytest.approx(c + 6 * read, abs=6 * read + 1e-9)


def test_what_auto_learned_of_passes_is_kept() -> None:
    world, rule, again = World(0.9, 0.4), Auto(8), Auto(8)
    world.at_once = True
    world.write(rule, 300)
    state = KeptState.model_validate_json(state_of(rule.meter).model_dump_json())
    give(state, again.meter)
    assert len(rule.meter.estimates.costs.passes) >= 3
    assert [again.meter.estimates.drafting(k) for k in range(9)] == [rule.meter.estimates.drafting(k) for k in range(9)]
    older = state.model_dump() | {"costs": {1: {**state.model_dump()["costs"][1], "passes": None}}}
    del older["costs"][1]["passes"]
    give(KeptState.model_validate(older), chain := Auto(8).meter)
    assert chain.estimates.drafting(2) == 2 * chain.estimates.price > 0, "as older versions kept it"


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
def test_where_speculation_pays_it_is_used(name: str) -> None:
    for a, c, v in ((0.9, 0.05, flat), (0.8, 0.1, flat), (0.8, 0.05, lambda n: 1 + 0.03 * n)):
        worlds = [World(a, c, v, seed=seed) for seed in range(2)]
        for world in worlds:
            world.write(policy_named(name), 1000)
            assert world.clock.now < 1000 * v(1) / 1.5
        best = max(factor(a, k, c, v) for k in range(9))
        assert 2000 / sum(world.clock.now for world in worlds) > 0.83 * best


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
@pytest.mark.parametrize("read", [0.0, 0.03])
def test_a_drafter_that_turns_bad_and_good_again(name: str, read: float) -> None:
    """Also where it has much to read before it can show that it is good again: `read` of a plain step a token."""
    world = World(0.9, 0.1, read=read)
    world.hits[400:1200] = [False] * 800
    made = world.write(policy_named(name), 2400)
    at, use = 1, Counter()
    for step in made.steps:
        use["good" if at < 380 else "bad" if 500 < at < 1200 else "again" if at > 1800 else ""] += len(step.drafted)
        at += len(step.emitted)
    assert use["good"] > 250 and use["again"] > 300
    assert use["bad"] < 170, "0.1 each: about 2 % of the time so far"


def test_the_target_alone_is_measured_again_and_again() -> None:
    """Early, as its first step is often slow, and then once in a hundred steps; a drafter that is always right drafts
    in all others."""
    made = World(1.0, 0.1).write(Auto(1), 700)
    plain = [i for i, step in enumerate(made.steps[:320]) if not step.drafted]
    assert plain == [0, 1, 2, 6, 11, 21, 41, 100, 200, 300]


class Told(Constant):
    """K drafts from the step `start` on, and what it is told of each."""

    def __init__(self, k: int, start: int = 0) -> None:
        super().__init__(k)
        self.start, self.outcomes = start, list[Outcome]()

    def begin(self, prompt: int, room: int) -> None:
        self.begun = prompt, room

    def next_k(self) -> int:
        return self.k if self.start <= len(self.outcomes) != self.start + 3 else 0

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def test_policies_are_told_what_was_read_when() -> None:
    """Three plain steps after a prompt of 60, then drafts, with one plain step between them."""
    rule = Told(2, start=3)
    World(1.0, 0.1).write(rule, 16, prompt=60)
    assert rule.begun == (60, 16)
    told = [(o.begins, o.prompt, o.late, o.behind) for o in rule.outcomes]
    assert told[:3] == [(True, True, 0, 61), (False, False, 0, 62), (False, False, 0, 63)]
    assert told[3] == (False, True, 63, 0), "the drafter's prompt, and what was written since"
    assert [(o.late, o.behind) for o in rule.outcomes[4:]] == [(0, 0), (0, 0), (0, 1), (1, 0)]
    assert not any(o.begins or o.prompt for o in rule.outcomes[4:])
    assert [o.read for o in rule.outcomes] == [60] + [0] * (len(rule.outcomes) - 1)
    assert [o.room for o in rule.outcomes[:4]] == [15, 14, 13, 10] and rule.outcomes[-1].room == 0
    assert [o.full for o in rule.outcomes] == [False] * (len(rule.outcomes) - 1) + [True]


def test_look_up_has_nothing_to_read() -> None:
    """It is never late, whenever it is asked first."""
    rule = Told(2, start=3)
    generate(Decoder(Table(1, 8), PromptLookup(), rule, GREEDY), [1] * 60, 16)
    assert rule.begun[0] == 0 and not any(o.late or o.behind for o in rule.outcomes)


def test_auto_keeps_from_prompt_to_prompt_what_it_learned() -> None:
    rule = Auto(8)
    World(0.9, 0.05).write(rule, 500)
    second = World(0.9, 0.05, seed=1)
    made = second.write(rule, 60, prompt=80)
    assert len(made.steps[0].drafted) > 3, "it drafts from the first step on"


def test_bad_luck_at_first_is_no_verdict_on_a_drafter() -> None:
    """Wrong up to the eighth token, then right as often as a good one: it is used in the same answer."""
    world = World(0.7, 0.17, lambda n: 1 + 0.06 * (n - 1))
    world.hits[:8] = [False] * 8
    made = world.write(Auto(8), 64)
    assert sum(len(step.drafted) > 0 for step in made.steps[-20:]) > 10
    assert world.clock.now < 64 / 1.1


def test_the_next_answer_is_of_its_own_kind() -> None:
    """A drafter that was useless for one prompt is tried again for the next, as far as it may lose time."""
    rule = Auto(8)
    World(0.0, 0.2).write(rule, 1000)
    assert rule.meter.best == 0
    drafts = rule.meter.estimates.acceptance.weight
    rule.begin(1, 600)
    assert rule.meter.estimates.acceptance.weight == pytest.approx(0.3 * drafts), "it counts a little"
    assert rule.meter.estimates.usual.weight > drafts, "what is usual counts on"
    made = World(0.9, 0.2, seed=1).write(rule, 600)
    assert sum(len(step.drafted) > 0 for step in made.steps[-60:-10]) > 40


def test_an_answer_starts_from_what_is_usual() -> None:
    """After many answers a drafter's acceptance is known, whatever a new one would be taken for."""
    for a in (0.2, 0.9):
        rule = Auto(8)
        for seed in range(12):
            World(a, 0.05, seed=seed).write(rule, 60)
        rule.begin(1, 60)
        assert rule.meter.estimates.accepted == pytest.approx(a, abs=0.12)


@pytest.mark.parametrize(
    ("a", "c", "v", "best"),
    [
        (0.95, 0.02, flat, 8),
        (0.7, 0.3, flat, 2),
        (0.9, 0.02, lambda n: 1.0 if n <= 4 else 2.5, 3),
        (0.55, 0.1, lambda n: 0.8 + 0.2 * n, 1),
    ],
)
def test_bandit_converges_to_the_best_arm(a: float, c: float, v: Cost, best: int) -> None:
    arms = [1, 2, 3, 5, 8]
    assert max(arms, key=lambda k: factor(a, k, c, v)) == best
    rule = Bandit([Constant(k) for k in arms])
    found = drafted(World(a, c, v).write(rule, 2000), 200)
    near = [k for k in arms if factor(a, k, c, v) > 0.9 * factor(a, best, c, v)]
    assert sum(found[k] for k in near) > 0.7 * sum(found.values())
    assert all(rule._tokens[arm].weight >= 1 for arm in range(len(arms))), "every arm was tried"


def test_bandit_over_policies_has_the_confidence_rule_among_its_arms() -> None:
    rule = policy_named("bandit", 8)
    assert isinstance(rule, Bandit) and isinstance(rule.arms[-1], Confidence)
    assert [arm.k for arm in rule.arms if isinstance(arm, Constant)] == [1, 2, 3, 5, 8]
    sure = [0.2 if n % 4 == 0 else 0.99 for n in range(3000)]
    world = Moody(sure, [n % 4 != 0 for n in range(3000)], 0.3, lambda n: 1 + 0.2 * (n - 1))
    drafter = ModelDrafter(world.model, GREEDY, confident=rule.confident)
    made = generate(Decoder(world.target, drafter, rule, GREEDY, clock=world.clock), [0], 2000)
    assert made.tokens == [RIGHT] * 2000
    assert rule._tokens[-1].weight > 10, "pulled"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("branching", [1, 2])
def test_policies_really_vary_k_and_trees_take_them_for_nodes(name: str, branching: int) -> None:
    world = World(0.7, 0.1, lambda n: 1 + 0.05 * n)
    world.branching = branching
    made = world.write(policy_named(name, 6), 400)
    lengths = {len(step.drafted) for step in made.steps[:-7]}
    assert max(lengths) <= 6
    assert lengths == {6} if name == "constant" else len(lengths) > 1


def test_names() -> None:
    kinds = [type(policy_named(name)) for name in NAMES]
    assert kinds == [Constant, Auto, Confidence, Bandit]
    assert policy_named("constant").next_k() == 5 and policy_named("constant", 0).next_k() == 0
