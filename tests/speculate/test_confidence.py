"""The confidence policy drafts as far as the drafter is sure."""

import random

from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.decode import Decoder, Generation, generate
from sparsedraft.speculate.policy.policies import Confidence
from sparsedraft.speculate.policy.protocol import Outcome
from worlds import GREEDY, RIGHT, Moody


def test_confidence_drafts_as_far_as_the_product_of_its_probabilities_reaches() -> None:
    """At a threshold of 0.3, with probabilities of 0.6: 0.6, 0.36 are worth it, 0.216 is not."""

    class Frozen(Confidence):
        def next_k(self) -> int:
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


def test_the_threshold_follows_what_a_draft_costs() -> None:
    """A dear drafter must be surer than a cheap one; so must one whose target takes long for one more token."""
    generator = random.Random(0)
    sure = [generator.choice([0.3, 0.6, 0.9, 0.99]) for _ in range(3000)]
    right = [generator.random() < p for p in sure]
    thresholds, lengths = [], []
    for c, slope in ((0.01, 0.0), (0.1, 0.0), (0.3, 0.0), (0.01, 0.3)):
        rule, made = confident(Moody(sure, right, c, lambda n, slope=slope: 1 + slope * (n - 1)), 500)
        thresholds.append(rule.threshold)
        lengths.append(sum(len(step.drafted) for step in made.steps) / len(made.steps))
    assert thresholds[0] < thresholds[1] < thresholds[2] and thresholds[0] < thresholds[3]
    assert lengths[0] > lengths[1] > lengths[2] and lengths[0] > lengths[3]
    assert len({round(threshold, 3) for threshold in thresholds}) == 4 and 0.3 not in thresholds
