"""Look-up and a model in one drafter, on a clock that only models move: together they are the better of the two."""

import random
from dataclasses import dataclass, field, replace

import pytest
import torch

from sparsedraft.speculate.drafters.lookup import PromptLookup
from sparsedraft.speculate.drafters.mixed import MixedDrafter
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.drafters.suffixes import SuffixAutomaton
from sparsedraft.speculate.loop.decode import Decoder, Generation, generate, generate_all
from sparsedraft.speculate.loop.sequence import TokenSequence
from sparsedraft.speculate.loop.shares import by_source, shares
from sparsedraft.speculate.policy.policies import Auto, Constant, policy_named
from sparsedraft.speculate.policy.protocol import Choice, Outcome, Place, Policy, Trial
from sparsedraft.speculate.policy.sources import Acceptances, WithLookup
from toys import Clock, Toy
from worlds import GREEDY, Cost, coins

WIDTH = 400


def text_of(copied: float, n: int, seed: int = 0) -> list[int]:
    """Pieces of 12 tokens: `copied` of them occurred before in the text, the others are drawn."""
    rng = random.Random(seed)
    text = [rng.randrange(WIDTH) for _ in range(60)]
    while len(text) < n:
        start = rng.randrange(len(text) - 12)
        text += text[start : start + 12] if rng.random() < copied else [rng.randrange(WIDTH) for _ in range(12)]
    return text[:n]


class _Slow(PromptLookup):
    """Look-up that takes its time."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def read(self, sequence: TokenSequence) -> SuffixAutomaton:
        self.clock.now += self.seconds
        return super().read(sequence)


@dataclass
class Copying:
    """A target that writes `text` in passes of v(n) seconds, and a drafter that is right with probability a at c a
    pass; each further token of a pass takes it `read`. The first `bad` tokens it never guesses. Look-up takes
    `looking` a step."""

    text: list[int]
    a: float
    c: float
    v: Cost = lambda n: 1 + 0.03 * n
    read: float = 0.02
    prompt: int = 60
    bad: int = 0
    looking: float = 0.0
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        eye, hits = 20 * torch.eye(WIDTH), coins(self.a, 0)
        self.target = Toy(lambda ids: eye[self.text[len(ids)]], clock=self.clock, cost=self.v)
        self.model = Toy(
            lambda ids: eye[(self.text[len(ids)] + (len(ids) < self.bad or not hits[len(ids)])) % WIDTH],
            clock=self.clock,
            cost=lambda n: self.c + self.read * (n - 1) if n < 60 else 0.0,
        )

    def write(self, drafter: str, policy: Policy) -> Generation:
        model = ModelDrafter(self.model, GREEDY)
        chosen = model if drafter == "model" else PromptLookup()
        if isinstance(policy, WithLookup):
            chosen = MixedDrafter(model, policy.choose)
            chosen.lookup = _Slow(self.clock, self.looking)
        made = generate(
            Decoder(self.target, chosen, policy, GREEDY, clock=self.clock),
            self.text[: self.prompt],
            len(self.text) - self.prompt - 30,
        )
        assert made.tokens == self.text[self.prompt : -30], "lossless"
        return made


def seconds(world: dict[str, object], name: str, drafter: str) -> float:
    at = Copying(**world)  # type: ignore[arg-type]
    policy = policy_named(name, 5)
    at.write(drafter, WithLookup(policy) if drafter == "both" else policy)
    return at.clock.now


@pytest.mark.parametrize("name", ["constant", "auto", "confidence"])
@pytest.mark.parametrize("copied", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("a", "c"), [(0.8, 0.1), (0.6, 0.3)])
def test_together_they_are_at_least_the_better_of_the_two(name: str, copied: float, a: float, c: float) -> None:
    """Of each kind of text; and better than both where each has its places."""
    world = {"text": text_of(copied, 1000), "a": a, "c": c}
    both, alone = seconds(world, name, "both"), {kind: seconds(world, name, kind) for kind in ("lookup", "model")}
    hardly_pays = 1.05 if c == 0.3 else 1.03  # where the model is hardly worth its time, finding out costs more
    assert both <= hardly_pays * min(alone.values()), alone
    if copied == 0.5 and a == 0.8:  # the other model is hardly worth its time
        assert both < 0.95 * min(alone.values())


@pytest.mark.parametrize("copied", [0.0, 0.5, 0.9])
def test_auto_gives_up_a_useless_model_and_keeps_look_up(copied: float) -> None:
    world = {"text": text_of(copied, 1000), "a": 0.0, "c": 0.2}
    both, alone = seconds(world, "auto", "both"), seconds(world, "auto", "lookup")
    assert both <= 1.035 * alone + 5


def test_the_time_of_look_up_is_no_loss_of_the_model() -> None:
    """Else a model that was bad for a while is never asked again: each step without it would add to what it lost."""
    for looking in (0.0, 0.002, 0.01, 0.02):
        world = Copying(text_of(0.0, 3000), 0.9, 0.2, bad=700, looking=looking)
        steps = world.write("both", WithLookup(Auto(5))).steps
        assert world.clock.now - looking * len(steps) < 0.85 * 3000, "it drafts again behind the bad part"


def test_what_look_up_drafts_is_no_evidence_of_the_model() -> None:
    """Its drafts cost no time and are mostly right; the model's price and acceptance are as without them."""
    world, rule = Copying(text_of(0.6, 1500), 0.5, 0.25), Auto(5)
    made = world.write("both", WithLookup(rule))
    counts = by_source((step.match, len(step.drafted), step.accepted) for step in made.steps)
    assert min(counts["lookup"][0], counts["drafter"][0]) > 30
    estimates = rule.meter.estimates
    assert estimates.costs.draft.value == pytest.approx(0.25, rel=0.05)
    assert estimates.acceptance.value == pytest.approx(0.5, abs=0.15)
    assert estimates.plain == pytest.approx(world.v(1))
    assert estimates.costs.verify[7].value == pytest.approx(world.v(8)), "look-up tells what verification costs"


class Told(Constant):
    def __init__(self, k: int) -> None:
        super().__init__(k)
        self.outcomes: list[Outcome] = []

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def test_what_the_model_has_not_read_is_counted_for_each_sequence() -> None:
    """Look-up drafts in every other step of the first of two sequences; the model then reads what it missed."""
    rule, turn = Told(2), {0: 0, 1: 0}

    def choose(place: Place) -> Choice:
        turn[place.row] += 1
        return Choice(place.match if place.row == 0 and turn[0] % 2 == 0 else None, place.limit)

    eye = 20 * torch.eye(9)
    target, model = (Toy(lambda ids: eye[len(ids) % 4], rows=2) for _ in range(2))
    drafter = MixedDrafter(ModelDrafter(model, GREEDY), choose)
    made = generate_all(Decoder(target, drafter, rule, GREEDY), [[0, 1, 2, 3, 0], [0, 1, 2]], 15, [0, 0])
    assert [step.match for step in made[0].steps] == [None, 4, None, 10, None]
    assert [(o.asked, o.late, o.behind) for o in rule.outcomes] == [
        (True, 5, 0), (True, 0, 3), (True, 3, 0), (True, 0, 3), (True, 3, 0),
    ]  # fmt: skip
    assert rule.outcomes[1].trials == (Trial(0, 4, 2, 2), Trial(1, None, 2, 2))
    assert not any(o.looked_up for o in rule.outcomes) and rule.outcomes[1].own == (2, 2.0)


def test_outcomes_come_back_from_json() -> None:
    outcome = Outcome(2, 1.5, 2.5, 0.1, 0.4, True, late=3, rows=2, trials=(Trial(0, None, 2, 2), Trial(1, 4, 2, 1)))
    import json
    from dataclasses import astuple, replace

    values = json.loads(json.dumps(astuple(outcome)))
    assert Outcome.of(values) == outcome
    without = [*values[:-2], values[-1]]
    assert Outcome.of(without) == outcome, "of a version that did not know drafts of one pass"
    assert Outcome.of(json.loads(json.dumps(astuple(replace(outcome, at_once=True))))).at_once
    assert Outcome.of(values[:11]) == Outcome(2, 1.5, 2.5, 0.1, 0.4, True, late=3, rows=2), "of an earlier version"
    looked_up = Outcome(2, 1, 2, 0.0, 0.4, trials=(Trial(0, 4, 2, 1), Trial(1, 0, 0, 0)))
    assert looked_up.looked_up and looked_up.own == (0, 0.0)
    assert not Outcome(0, 0, 1, 0.0, 0.4, trials=(Trial(0, 0, 0, 0),)).looked_up, "a plain step"


def test_acceptance_is_learned_by_the_length_of_the_match() -> None:
    found = Acceptances()
    first = found.tokens(0, 1, 3)
    assert first[0] == 1 and first == sorted(first) and found.tokens(0, 8, 3)[3] > first[3]
    for _ in range(20):
        found.add(Trial(0, 1, 3, 0))
        found.add(Trial(0, 9, 3, 3))
    assert found.tokens(0, 1, 1)[1] < 1.12 and found.tokens(0, 9, 3)[3] > 3.7
    assert found.tokens(1, 1, 3) == first, "another sequence has its own"
    found.begin()
    assert found.tokens(0, 1, 1) == found.tokens(1, 1, 1) and found.tokens(0, 1, 1)[1] < 1.12, "the next begins so"
    for _ in range(4):
        found.add(Trial(0, 1, 2, 2))
    assert found.tokens(0, 1, 1)[1] > 1.3, "its own evidence soon weighs more"
    for _ in range(40):
        found.begin()
    assert found.tokens(0, 1, 3) == pytest.approx(first, abs=0.05), "all is forgotten in time"
    found.add(Trial(0, None, 0, 0))
    assert found.tokens(0, None, 1)[1] < 1.75, "a model that was asked and drafted nothing"


def told(rule: WithLookup, *outcomes: Outcome) -> None:
    for outcome in outcomes:
        rule.next_k()
        rule.observe(outcome)


def at(match: int, limit: int) -> Place:
    """Far in an answer after a short prompt."""
    return Place(0, match, limit, 10, 100, 1000)


def model_step(n: int, accepted: int, price: float, verify: float) -> Outcome:
    trials = (Trial(0, None, n, accepted),)
    return Outcome(n, accepted, accepted + 1, n * price, n * price + verify, True, trials=trials)


def test_the_source_with_more_tokens_per_second_drafts() -> None:
    """Look-up writes fewer tokens a step than a good model; whether it is worth more depends on the model's price."""
    for price, chosen in ((0.01, None), (0.3, 2)):
        rule = WithLookup(Constant(4))
        told(rule, *[model_step(4, 3, price, 1.0)] * 6)
        rule.next_k()
        assert rule.choose(at(2, 8)).match == chosen
        assert rule.choose(at(0, 8)) == Choice(None, 4), "no match"
        assert rule.choose(at(0, 2)) == Choice(None, 2), "no room"
        assert rule.choose(at(100, 8)).match == 100, "a long match is nearly sure"


def test_a_model_that_does_not_pay_is_left_out_under_a_constant_k_too() -> None:
    """Auto decides that itself, and may try the model again."""
    constant, auto = WithLookup(Constant(4)), WithLookup(Auto(4))
    for rule in (constant, auto):
        told(rule, *[Outcome(0, 0, 1, 0.0, 1.0)] * 3, *[model_step(1, 0, 0.5, 1.0)] * 20)
    assert constant.next_k() == 8 and constant.choose(at(0, 8)) == Choice(0, 0)
    auto._own = 3
    assert auto.choose(at(0, 8)) == Choice(None, 3)


def test_look_up_drafts_more_where_that_is_cheap_and_fewer_where_it_is_not() -> None:
    for slope, low, high in ((0.0, 8, 8), (1.0, 1, 3)):
        rule = WithLookup(Constant(4))
        told(rule, *[model_step(n, n, 1.0, 1 + slope * n) for n in (4, 1, 4, 1, 4, 1)])
        assert rule.next_k() == 8
        choice = rule.choose(at(12, 8))
        assert choice.match == 12 and low <= choice.n <= high


def test_a_plain_step_is_plain_and_k_0_drafts_nothing() -> None:
    assert WithLookup(Constant(0)).next_k() == 0
    rule = WithLookup(Auto(4))
    assert rule.plain and rule.next_k() == 0, "the target alone is measured first"
    told(rule, Outcome(0, 0, 1, 0.0, 1.0, begins=True, prompt=True), Outcome(0, 0, 1, 0.0, 1.0))


def test_a_prompt_is_read_where_the_rest_of_the_answer_is_worth_it() -> None:
    """Reading takes 0.05 s a token; the model saves about half a second a token."""

    def start(answer: int) -> WithLookup:
        rule = WithLookup(Constant(4))
        first = replace(model_step(4, 3, 0.1, 1.0), draft_seconds=5.4, begins=True, prompt=True, late=100)
        assert rule.next_k() and rule.choose(Place(0, 0, 8, 10**6, 0, 900)).match is None, "no price is known"
        told(rule, first, *[model_step(4, 3, 0.1, 1.0)] * (answer // 4 - 1))
        assert rule.next_k() == 8
        return rule

    for prompt, answer, asked in ((50, 24, True), (650, 24, False), (650, 240, True)):
        assert (start(answer).choose(Place(0, 0, 8, prompt, 0, 900)).match is None) == asked
    assert start(240).choose(Place(0, 0, 8, 650, 0, 30)) == Choice(0, 0), "there is no room for a long answer"
    late = start(24)
    late.choose(Place(0, 0, 8, 650, 0, 900))
    assert late.choose(Place(0, 0, 8, 650, 300, 900)).match is None, "longer than all before, it is half done"


def test_look_up_pays_for_reading_and_not_for_trials() -> None:
    rule = Auto(4)
    budget = rule.meter.budget
    rule.observe(Outcome(0, 0, 1, 0.0, 1.0))
    before = budget.lost
    rule.observe(Outcome(4, 4, 5, 0.0, 1.0, trials=(Trial(0, 9, 4, 4),)))
    assert budget.lost == before and budget.saved == pytest.approx(4.0, abs=2 * budget.READING_SHARE)
    rule.observe(Outcome(4, 0, 1, 0.0, 1.5, trials=(Trial(0, 9, 4, 0),)))
    assert budget.saved == pytest.approx(4.0, abs=2 * budget.READING_SHARE) and budget.lost == before


def test_the_share_of_each_source() -> None:
    steps = [(None, 3, 2), (4, 5, 5), (None, 0, 0), (0, 0, 0), (1, 1, 0)]
    counts = by_source(steps)
    assert counts == {"lookup": [2, 6, 5], "drafter": [1, 3, 2], "plain": [2, 0, 0]}
    assert shares(counts) == {
        "lookup": {"share_of_steps": 0.4, "drafted_per_step": 3.0, "acceptance_rate": 5 / 6},
        "drafter": {"share_of_steps": 0.2, "drafted_per_step": 3.0, "acceptance_rate": 2 / 3},
        "plain": {"share_of_steps": 0.4},
    }
    assert shares(by_source([]))["lookup"] == {"share_of_steps": 0, "drafted_per_step": 0, "acceptance_rate": 0}


def test_an_answer_that_joins_leaves_the_others_what_they_have_shown() -> None:
    """What is known of an answer under way stays; of those that have ended nothing is kept under their indices."""
    policy = WithLookup(Constant(4), joins=True)

    def step(*rows: int) -> None:
        for row in rows:
            policy.choose(Place(row, 3, 8, 40, policy.reading.remaining._rows.get(row, 0), 100))
        trials = tuple(Trial(row, 3, 8, 8) for row in rows)
        policy.observe(Outcome(8, 8, 9, 0.0, 1.0, begins=False, rows=len(rows), trials=trials))

    for _ in range(6):
        step(0)
    shown, fresh = policy.acceptances.tokens(0, 3, 8)[-1], Acceptances().tokens(0, 3, 8)[-1]
    assert shown > 1.2 * fresh
    policy.choose(Place(1, 3, 8, 40, 0, 100))
    assert policy.acceptances.tokens(0, 3, 8)[-1] == pytest.approx(shown, rel=0.02)
    for row in range(1, 40):  # one after the other beside the first
        step(0, row)
    assert {*policy.acceptances._rows} <= {0, 38, 39} and {*policy.reading.remaining._rows} <= {0, 38, 39}
