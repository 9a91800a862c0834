"""K policies on a clock that only models move: they find the K that pays, and lose almost nothing where none does."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.decode import Decoder, Generation, generate
from sparsedraft.speculate.policy.meter import WORST, Meter
from sparsedraft.speculate.policy.policies import NAMES, Auto, Bandit, Confidence, Constant, policy_named
from sparsedraft.speculate.policy.protocol import Outcome, Policy
from sparsedraft.speculate.trees.drafter import TreeDrafter
from sparsedraft.stages.evaluate.speedup import expected_length, improvement_factor
from toys import Clock, Toy

GREEDY = Sampling()
RIGHT, WRONG = 1, 2
Cost = Callable[[int], float]  # seconds of a pass over n new tokens


def flat(n: int) -> float:
    return 1.0


class World:
    """A target whose passes take v(n) seconds, a drafter that takes c a pass and is right with probability a.

    Each further token of a pass takes the drafter `read`, and its prompt, of 50 or more, takes `prompt`.
    """

    def __init__(
        self, a: float, c: float, v: Cost = flat, seed: int = 0, prompt: float = 0.0, read: float = 0.0
    ) -> None:
        rng = random.Random(seed)
        self.clock, self.hits = Clock(), [rng.random() < a for _ in range(5000)]
        self.target = Toy(lambda ids: self.logits(RIGHT), clock=self.clock, cost=v)
        self.model = Toy(self.guess, clock=self.clock, cost=lambda n: c + read * (n - 1) + (prompt if n >= 50 else 0))
        self.branching = 1

    @staticmethod
    def logits(token: int, sure: float = 20.0) -> torch.Tensor:
        out = torch.zeros(8)
        out[token] = sure
        return out

    def guess(self, ids: list[int]) -> torch.Tensor:
        return self.logits(RIGHT if self.hits[len(ids)] else WRONG)

    def write(self, policy: Policy, n: int, prompt: int = 1, seed: int = 0) -> Generation:
        drafter = (
            TreeDrafter(self.model, GREEDY, self.branching) if self.branching > 1 else ModelDrafter(self.model, GREEDY)
        )
        decoder = Decoder(self.target, drafter, policy, GREEDY, clock=self.clock)
        made = generate(decoder, [0] * prompt, n)
        assert made.tokens == [RIGHT] * n, "lossless"
        return made


def drafted(made: Generation, last: int) -> Counter[int]:
    """Drafts a step, in the last steps, without the very last, which have no room."""
    return Counter(len(step.drafted) for step in made.steps[-last - 10 : -10])


def factor(a: float, k: int, c: float, v: Cost) -> float:
    """Tokens per second."""
    return improvement_factor(expected_length(a, k), k, c, v(k + 1))


# ---- auto


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
    assert rule.meter.costs.draft.value == pytest.approx(c) and rule.meter.plain == pytest.approx(v(1))


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
@pytest.mark.parametrize(
    ("a", "c", "v"),
    [
        (0.0, 0.1, flat),
        (0.3, 0.5, flat),
        (0.7, 1.0, flat),
        (0.4, 0.1, lambda n: float(n)),
        (0.0, 3.0, flat),
        (0.5, 0.3, lambda n: 0.5 + 0.5 * n),
    ],
)
@pytest.mark.parametrize(("n", "read"), [(300, 0.0), (300, 0.1), (1000, 0.1), (1000, 0.3)])
def test_where_speculation_loses_the_time_is_that_of_plain_decoding(
    name: str, a: float, c: float, v: Cost, n: int, read: float
) -> None:
    """At most WORST of the time and CREDIT steps more, and what the last trials lose beyond what was expected; also
    where the drafter first reads what was written since the last, at `read` of a draft's price a token."""
    assert all(factor(a, k, c, v) < factor(a, 0, c, v) for k in range(1, 9)), "no K pays"
    world = World(a, c, v, read=read * c)
    made = world.write(policy_named(name), n)
    assert world.clock.now <= ((1 + WORST) * n + Meter.CREDIT + 2) * v(1)
    assert drafted(made, 100)[0] > 75, "K = 0, but for trials"


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
def test_a_slow_first_step_of_the_target_does_not_make_speculation_look_good(name: str) -> None:
    """The first plain step, right after the prompt, takes 1.6 times what the others do."""
    passes = iter([1.0, 1.6])
    world = World(0.0, 0.1, lambda n: next(passes, 1.0))
    world.write(policy_named(name), 300)
    assert world.clock.now <= (1 + WORST) * 300 + Meter.CREDIT + 4


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
def test_where_speculation_pays_it_is_used(name: str) -> None:
    for a, c, v in ((0.9, 0.05, flat), (0.8, 0.1, flat), (0.8, 0.05, lambda n: 1 + 0.03 * n)):
        worlds = [World(a, c, v, seed=seed) for seed in range(4)]
        for world in worlds:
            world.write(policy_named(name), 1000)
            assert world.clock.now < 1000 * v(1) / 1.5
        best = max(factor(a, k, c, v) for k in range(9))
        assert 4000 / sum(world.clock.now for world in worlds) > 0.83 * best


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
@pytest.mark.parametrize("read", [0.0, 0.01, 0.03])
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


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
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


def test_the_target_alone_is_measured_again_and_again() -> None:
    """Early, as its first step is often slow, and then once in a hundred steps; a drafter that is always right drafts
    in all others."""
    made = World(1.0, 0.1).write(Auto(1), 700)
    plain = [i for i, step in enumerate(made.steps[:320]) if not step.drafted]
    assert plain == [0, 1, 2, 7, 12, 22, 42, 101, 201, 301]


def test_what_speculation_may_lose_before_it_has_shown_anything() -> None:
    """Two plain steps' time: the draft with the prompt, four of half a step each, and the one that goes beyond."""
    rule = Auto(1)
    rule.meter.EXPECTED = 0.999, 1e6  # so that it drafts as long as it may
    made = World(0.0, 0.5).write(rule, 20)
    assert 5 <= sum(len(step.drafted) for step in made.steps) <= 6


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
@pytest.mark.parametrize("at", [5, 6, 7, 9])
def test_a_pass_of_the_target_that_the_machine_held_up_is_no_verdict(name: str, at: int) -> None:
    """Also where it is the first of its number of drafts."""
    passes = iter(range(10**6))
    world = World(0.9, 0.1, lambda n: 1.0 + (100.0 if next(passes) == at else 0.0))
    world.write(policy_named(name), 1200)
    assert world.clock.now > 100 and world.clock.now - 100 < 1200 / 2.2


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
@pytest.mark.parametrize(("steps", "times"), [(3, 1.6), (6, 2.0), (12, 3.0)])
def test_a_target_that_warms_up_does_not_make_speculation_look_good(name: str, steps: int, times: float) -> None:
    """Its first steps take `times` as long as all others: beyond them a useless drafter costs little."""
    passes = iter(range(10**6))
    world = World(0.0, 0.1, lambda n: times if next(passes) < steps else 1.0)
    world.write(policy_named(name), 800)
    assert world.clock.now - steps * (times - 1) <= (1 + WORST) * 800 + 14


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
@pytest.mark.parametrize(("length", "a", "c"), [(5, 0.0, 0.3), (20, 0.2, 0.5), (50, 0.2, 0.5)])
def test_many_short_answers_lose_no_more_than_a_long_one(name: str, length: int, a: float, c: float) -> None:
    """With one policy for all: their first steps count, too."""
    rule, seconds = policy_named(name), 0.0
    for seed in range(3000 // length):
        world = World(a, c, seed=seed)
        world.write(rule, length)
        seconds += world.clock.now
    assert seconds <= 1.03 * 3000


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
def test_a_long_good_time_does_not_pay_for_a_long_bad_one(name: str) -> None:
    rule = policy_named(name)
    for seed in range(10):
        World(0.95, 0.3, seed=seed).write(rule, 2500)
    world = World(0.0, 0.3)
    world.write(rule, 1000)
    assert world.clock.now < 1.06 * 1000


class Told(Constant):
    """K drafts from the step `start` on, and what it is told of each."""

    def __init__(self, k: int, start: int = 0) -> None:
        super().__init__(k)
        self.start, self.outcomes = start, list[Outcome]()

    def wanted(self) -> int:
        return self.k if self.start <= len(self.outcomes) != self.start + 3 else 0

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def test_policies_are_told_what_was_read_when() -> None:
    """Three plain steps after a prompt of 60, then drafts, with one plain step between them."""
    rule = Told(2, start=3)
    World(1.0, 0.1).write(rule, 16, prompt=60)
    told = [(o.begins, o.prompt, o.late, o.behind) for o in rule.outcomes]
    assert told[:3] == [(True, True, 0, 0), (False, False, 0, 0), (False, False, 0, 0)]
    assert told[3] == (False, True, 63, 0), "the drafter's prompt, and what was written since"
    assert [(o.late, o.behind) for o in rule.outcomes[4:]] == [(0, 0), (0, 0), (0, 1), (1, 0)]
    assert not any(o.begins or o.prompt for o in rule.outcomes[4:])


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
def test_a_long_prompt_that_the_drafter_reads_late_counts_for_nothing(name: str) -> None:
    """Its time is the prompt's: a hundred steps' worth of it does not stop a drafter that pays."""
    world = World(0.9, 0.05, prompt=100.0)
    before = world.clock.now
    world.write(policy_named(name), 600, prompt=60)
    assert world.clock.now - before - 100 < 600 / 1.8


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
    """A drafter that was useless for one prompt is tried anew for the next, as far as it may lose time."""
    rule = Auto(8)
    World(0.0, 0.2).write(rule, 1000)
    assert rule.meter.best == 0
    drafts = rule.meter.acceptance.weight
    rule.observe(Outcome(0, 0, 1, 0.0, 5.0, begins=True, prompt=True))
    assert rule.meter.best > 0
    assert rule.meter.acceptance.weight == pytest.approx(0.3 * drafts), "it counts a little"
    rule.observe(Outcome(0, 0, 1, 0.0, 1.0))
    rule.observe(Outcome(1, 0, 1, 5.0, 6.0, prompt=True, late=50))
    assert rule.meter.acceptance.weight == pytest.approx(0.3 * drafts * 0.95 + 1), "once an answer, whoever reads when"


# ---- confidence


class Moody(World):
    """A drafter that says how sure it is: `sure[n]` is its top probability after n tokens."""

    def __init__(self, sure: list[float], right: list[bool], c: float, v: Cost = flat) -> None:
        super().__init__(1.0, c, v)
        self.sure, self.right = sure, right

    def guess(self, ids: list[int]) -> torch.Tensor:
        out = torch.full((8,), (1 - self.sure[len(ids)]) / 7)
        out[RIGHT if self.right[len(ids)] else WRONG] = self.sure[len(ids)]
        return out.log()


def test_confidence_drafts_as_far_as_the_product_of_its_probabilities_reaches() -> None:
    """At a threshold of 0.3, with probabilities of 0.6: 0.6, 0.36 are worth it, 0.216 is not."""

    class Frozen(Confidence):
        def wanted(self) -> int:
            return 12

        def observe(self, outcome: Outcome) -> None:
            self.threshold = 0.3

    for sure, length in ((0.6, 2), (0.99, 12), (0.25, 0), (0.8, 5)):
        world = Moody([sure] * 500, [True] * 500, 0.1)
        drafter = ModelDrafter(world.model, GREEDY, confident=(rule := Frozen()).confident)
        made = generate(Decoder(world.target, drafter, rule, GREEDY), [0], 300)
        assert {len(step.drafted) for step in made.steps[:-13]} == {length} or length == 0
        assert length or not any(step.drafted for step in made.steps)


def confident(world: Moody, n: int) -> tuple[Confidence, Generation]:
    rule = Confidence(12)
    drafter = ModelDrafter(world.model, GREEDY, confident=rule.confident)
    made = generate(Decoder(world.target, drafter, rule, GREEDY, clock=world.clock), [0], n)
    assert made.tokens == [RIGHT] * n
    return rule, made


def test_confidence_stops_early_where_the_drafter_is_unsure() -> None:
    """Sure and right at most places, unsure and wrong at every seventh: it drafts up to there."""
    sure = [0.2 if n % 7 == 0 else 0.99 for n in range(3000)]
    right = [n % 7 != 0 for n in range(3000)]
    world = Moody(sure, right, 0.1)
    _, made = confident(world, 1000)
    late = [step for step in made.steps[-100:-5] if step.drafted]
    assert len(late) > 70
    wasted = sum(len(step.drafted) - step.accepted for step in late)
    assert wasted <= 0.02 * sum(len(step.drafted) for step in late), "hardly a draft is thrown away"
    assert max(len(step.drafted) for step in late) == 6


@pytest.mark.parametrize("name", ["auto", "confidence", "bandit"])
@pytest.mark.parametrize("read", [0.0, 0.01, 0.07])
def test_an_unsure_drafter_that_is_wrong_costs_little(name: str, read: float) -> None:
    """Also where confidence asks it again and again and gets no draft at all, and where it has much to read first."""
    world = Moody([0.2] * 1000, [False] * 1000, 0.3)
    world.model.cost = lambda n: 0.3 + read * (n - 1)
    rule = policy_named(name)
    drafter = ModelDrafter(world.model, GREEDY, confident=rule.confident)
    generate(Decoder(world.target, drafter, rule, GREEDY, clock=world.clock), [0], 400)
    assert world.clock.now <= 1.03 * 400


def test_the_threshold_follows_what_a_draft_costs() -> None:
    """A dear drafter must be surer than a cheap one; so must one whose target takes long for one more token."""
    generator = random.Random(0)
    sure = [generator.choice([0.3, 0.6, 0.9, 0.99]) for _ in range(3000)]
    right = [generator.random() < p for p in sure]
    thresholds, lengths = [], []
    for c, slope in ((0.01, 0.0), (0.1, 0.0), (0.3, 0.0), (0.01, 0.3)):
        rule, made = confident(Moody(sure, right, c, lambda n, slope=slope: 1 + slope * (n - 1)), 800)
        thresholds.append(rule.threshold)
        lengths.append(sum(len(step.drafted) for step in made.steps) / len(made.steps))
    assert thresholds[0] < thresholds[1] < thresholds[2] and thresholds[0] < thresholds[3]
    assert lengths[0] > lengths[1] > lengths[2] and lengths[0] > lengths[3]
    assert len({round(threshold, 3) for threshold in thresholds}) == 4 and 0.3 not in thresholds


# ---- bandit


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


# ---- all of them


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
    assert policy_named("constant").wanted() == 5 and policy_named("constant", 0).wanted() == 0
