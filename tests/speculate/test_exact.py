"""Speculative sampling gives the target's own distribution: summed over every accept, reject and draw of the real loop.

Dice that try every outcome lead the Decoder through all paths of a step, with their probabilities, and the steps are
chained over all texts that can be emitted. The result is compared with transformers' own processors on the target's
logits, sequence by sequence; the toys compute in float64.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.drafters.lookup import PromptLookup
from sparsedraft.speculate.drafters.mixed import MixedDrafter
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.drafters.parallel import ParallelDrafter
from sparsedraft.speculate.drafters.vocabulary import VocabularyMap
from sparsedraft.speculate.loop.decode import Decoder
from sparsedraft.speculate.loop.drafter import Drafter
from sparsedraft.speculate.loop.sequence import Draft
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.policy.protocol import Choice, Place
from sparsedraft.speculate.policy.sources import WithLookup
from sparsedraft.speculate.trees.drafter import TreeDrafter
from toys import Clock, Table, Toy, after_all, likely, outcomes

V, LENGTH = 6, 4
PROMPT = [1, 3, 5, 1, 3]  # repeats itself, for prompt lookup
OWN = pytest.mark.parametrize("own", [1.0, 0.6, 1.4])  # the drafter's temperature, times the target's
SHARED = VocabularyMap(torch.tensor([0, 2, 3, 5]), torch.tensor([4, 0, 2, 1]), V)


def target() -> Table:
    return Table(1, V, dtype=torch.float64)


def emitted(drafter: Callable[[], Drafter], k: int, sampling: Sampling, beyond: int) -> dict[tuple[int, ...], float]:
    """The probability of every text of `LENGTH` tokens that the loop emits, `beyond` tokens more to go."""
    mass: dict[int, dict[tuple[int, ...], float]] = {n: defaultdict(float) for n in range(LENGTH + 1)}
    mass[0][()] = 1.0
    for n in range(LENGTH):
        for text, chance in mass[n].items():

            def step(dice, text=text, n=n) -> tuple[int, ...]:
                decoder = Decoder(target(), drafter(), Constant(k), sampling, dice=lambda seed: dice)
                room = LENGTH - n + (0 if n else beyond)
                return tuple(next(decoder.decode([[*PROMPT, *text]], room, [0])).emitted)

            for new, probability in outcomes(step):
                longer = (*text, *new)[:LENGTH]
                mass[len(longer)][longer] += chance * probability
    return mass[LENGTH]


def check(drafter: Callable[[], Drafter], k: int, sampling: Sampling, beyond: int = 0) -> None:
    p, found = likely(target(), PROMPT, sampling, LENGTH), emitted(drafter, k, sampling, beyond)
    assert sum(p.values()) == pytest.approx(1, abs=1e-12)
    assert len(p) == V**LENGTH and set(found) <= set(p)
    assert max(abs(found.get(text, 0.0) - chance) for text, chance in p.items()) < 1e-9
    assert all(p[text] > 0 for text in found), "a text that a warper forbids"


def model(sampling: Sampling, **options: object) -> Callable[[], Drafter]:
    return lambda: ModelDrafter(Table(2, V, dtype=torch.float64), sampling, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("k", "sampling"),
    [
        (1, Sampling(1.0)),
        (1, Sampling(0.7, top_k=5, repetition_penalty=1.4)),
        (2, Sampling(0.9, top_k=4)),
        (2, Sampling(1.2, min_p=0.15, repetition_penalty=0.8)),
        (3, Sampling(1.3, top_k=3)),
        (3, Sampling(1.0, top_p=0.6)),
        (2, Sampling(0.9, top_k=4, verification="token")),
        (3, Sampling(1.0, top_p=0.6, verification="token")),
    ],
    ids=str,
)
@OWN
def test_chain(k: int, sampling: Sampling, own: float) -> None:
    check(model(sampling.tempered(own)), k, sampling)


@pytest.mark.parametrize(
    ("nodes", "sampling"),
    [
        (3, Sampling(0.8, top_k=3)),
        (4, Sampling(1.5, top_p=0.5)),
        (4, Sampling(0.8, top_k=3, repetition_penalty=1.6)),
        (5, Sampling(1.0, min_p=0.3)),
    ],
    ids=str,
)
@OWN
def test_tree_without_replacement(nodes: int, sampling: Sampling, own: float) -> None:
    """Two tokens a place; the first step has room for `nodes` of them, so that a tree branches twice."""

    def drafter() -> Drafter:
        return TreeDrafter(Table(2, V, dtype=torch.float64), sampling.tempered(own), branching=2, width=2)

    check(drafter, nodes, sampling, beyond=nodes + 1 - LENGTH)


def test_tree_of_all_that_can_be_drawn() -> None:
    """More branches than tokens that the warpers leave: the last sibling is certain, and then there is none."""
    sampling = Sampling(1.0, top_k=2)
    check(lambda: TreeDrafter(Table(2, V, dtype=torch.float64), sampling, branching=4), 5, sampling, beyond=2)


@pytest.mark.parametrize(
    ("k", "sampling"),
    [
        (1, Sampling(1.0)),
        (2, Sampling(0.8, top_k=4, repetition_penalty=1.5)),
        (2, Sampling(1.1, top_p=0.7)),
        (3, Sampling(1.0, min_p=0.25)),
        (2, Sampling(1.1, top_p=0.7, verification="token")),
    ],
    ids=str,
)
@OWN
def test_vocabulary_intersection(k: int, sampling: Sampling, own: float) -> None:
    """The drafter has five tokens, four of them the target's, whose penalties are those of the target's tokens."""
    ids = SHARED.inverse()

    def drafter() -> Drafter:
        return ModelDrafter(
            Table(2, 5, dtype=torch.float64),
            sampling.tempered(own),
            read=lambda row: [ids.get(token, 3) for token in row.tokens],
            vocabulary=SHARED,
        )

    check(drafter, k, sampling)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, top_k=3, repetition_penalty=1.3)], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_certain_drafts(k: int, sampling: Sampling) -> None:
    """Drafts that nobody drew: what prompt lookup copies, and a model's likeliest tokens."""
    check(PromptLookup, k, sampling)
    check(model(sampling, certain=True), k, sampling)


def parallel(sampling: Sampling, **options: object) -> Callable[[], Drafter]:
    """Its logits depend on all that it reads, the mask tokens V too."""

    def make() -> Drafter:
        return ParallelDrafter(Toy(lambda ids: after_all(ids, V)), sampling, V, **options)  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("verification", ["block", "token"])
@pytest.mark.parametrize(
    ("k", "sampling"),
    [
        (1, Sampling(1.0)),
        (2, Sampling(0.9, top_k=4)),
        (2, Sampling(1.2, min_p=0.15, repetition_penalty=0.7)),
        (3, Sampling(1.3, top_k=3)),
        (3, Sampling(1.0, top_p=0.6, repetition_penalty=1.5)),
    ],
    ids=str,
)
@OWN
def test_drafts_of_one_pass(k: int, sampling: Sampling, own: float, verification: str) -> None:
    check(parallel(sampling.tempered(own)), k, replace(sampling, verification=verification))


def test_drafts_of_one_pass_in_other_ways() -> None:
    """Without a q; ended by doubt; of a part of the vocabulary; with look-up beside it."""
    sampling = Sampling(1.0, top_k=3)
    check(parallel(sampling, certain=True), 3, sampling)
    check(parallel(sampling, confident=lambda reach: reach >= 0.3), 3, sampling)
    check(lambda: MixedDrafter(parallel(sampling)(), by_match(2)), 3, sampling)
    ids = SHARED.inverse()

    def of_a_part() -> Drafter:
        return ParallelDrafter(
            Toy(lambda read: after_all(read, 5)),
            sampling,
            5,
            read=lambda row: [ids.get(token, 3) for token in row.tokens],
            vocabulary=SHARED,
        )

    check(of_a_part, 3, sampling)


def by_match(longest: int) -> Callable[[Place], Choice]:
    """Look-up where the match is of at most `longest` tokens, else the model."""
    return lambda place: Choice(place.match if 0 < place.match <= longest else None, place.limit)


@pytest.mark.parametrize("verification", ["block", "token"])
@pytest.mark.parametrize(
    ("k", "longest", "sampling"),
    [
        (1, 2, Sampling(1.0)),
        (2, 1, Sampling(0.7, top_k=4, repetition_penalty=1.3)),
        (3, 2, Sampling(1.3, top_k=3)),
        (3, 2, Sampling(1.0, min_p=0.2)),
    ],
    ids=str,
)
def test_look_up_or_a_model_step_by_step(k: int, longest: int, sampling: Sampling, verification: str) -> None:
    """Looked-up drafts have no q, the model's have; which of them a step verifies depends on the text alone."""
    sampling, sources = replace(sampling, verification=verification), set()

    def choose(place: Place) -> Choice:
        sources.add((choice := by_match(longest)(place)).match is None)
        return choice

    check(lambda: MixedDrafter(model(sampling)(), choose), k, sampling)
    assert sources == {True, False}


@pytest.mark.parametrize("verification", ["block", "token"])
def test_sources_chosen_by_what_was_accepted_before(verification: str) -> None:
    """Whole decodes, whose caches the model catches up with: it is asked where the last looked-up draft was rejected,
    by the policy's own choice. The seconds are those of the toys' clock."""
    sampling, length, sources = Sampling(1.0, top_k=2, verification=verification), 5, set()

    def whole(dice) -> tuple[int, ...]:
        clock = Clock()
        slow = Table(1, V, dtype=torch.float64, clock=clock, cost=lambda n: 1 + 0.1 * n)
        fast = Table(2, V, dtype=torch.float64, clock=clock, cost=lambda n: 0.6)
        policy = WithLookup(Constant(2))
        drafter = MixedDrafter(ModelDrafter(fast, sampling), policy.choose)
        decoder = Decoder(slow, drafter, policy, sampling, dice=lambda seed: dice, clock=clock)
        steps = [*decoder.decode([PROMPT], length, [0])]
        sources.add(tuple(step.match is None for step in steps if step.drafted))
        return tuple(token for step in steps for token in step.emitted)

    found: dict[tuple[int, ...], float] = defaultdict(float)
    for text, probability in outcomes(whole):
        found[text] += probability
    likely_texts = likely(target(), PROMPT, sampling, length)
    assert max(abs(found.get(text, 0.0) - chance) for text, chance in likely_texts.items()) < 1e-9
    assert set(found) <= set(likely_texts) and len(found) > 10
    assert any(True in order and False in order for order in sources), "both in one decode"


def test_confidence_that_stops_drafts() -> None:
    """Where drafting stops depends on the tokens drawn so far; that must not bias what is emitted."""
    sampling = Sampling(1.0, top_k=3)
    lengths = set()

    def confident(reach: float) -> bool:
        lengths.add(reach >= 0.35)
        return reach >= 0.35

    check(model(sampling, confident=confident), 3, sampling)
    assert lengths == {True, False}


@OWN
def test_whole_decodes_with_their_caches(own: float) -> None:
    """Not step by step but from the first token to the last, over what roll-backs leave in both caches."""
    sampling, length = Sampling(1.0, top_k=2), 4

    def whole(dice) -> tuple[int, ...]:
        drafter = ModelDrafter(Table(2, V, dtype=torch.float64), sampling.tempered(own))
        decoder = Decoder(target(), drafter, Constant(2), sampling, dice=lambda seed: dice)
        return tuple(t for step in decoder.decode([PROMPT], length, [0]) for t in step.emitted)

    found: dict[tuple[int, ...], float] = defaultdict(float)
    for text, probability in outcomes(whole):
        found[text] += probability
    for text, chance in likely(target(), PROMPT, sampling, length).items():
        assert abs(found.get(text, 0.0) - chance) < 1e-9


def test_whole_decodes_of_one_pass_drafts() -> None:
    """Over the mask tokens that each step leaves in the drafter's cache."""
    sampling, found = Sampling(1.0, top_k=2), defaultdict[tuple[int, ...], float](float)

    def whole(dice) -> tuple[int, ...]:
        decoder = Decoder(target(), parallel(sampling)(), Constant(2), sampling, dice=lambda seed: dice)
        return tuple(t for step in decoder.decode([PROMPT], LENGTH, [0]) for t in step.emitted)

    for text, probability in outcomes(whole):
        found[text] += probability
    for text, chance in likely(target(), PROMPT, sampling, LENGTH).items():
        assert abs(found.get(text, 0.0) - chance) < 1e-9


@pytest.mark.parametrize("verification", ["block", "token"])
def test_another_q_than_that_of_the_draws_is_found(verification: str) -> None:
    """What the sums above rely on: verified with the q of another temperature, the text is not the target's."""
    sampling = Sampling(1.0, verification=verification)

    class Wrong(ModelDrafter):
        def propose(self, sequences, limits):
            drafts = super().propose(sequences, limits)
            return [Draft(d.tokens, [(q.log() * 0.6).softmax(-1) for q in d.q or []]) for d in drafts]

    with pytest.raises(AssertionError):
        check(lambda: Wrong(Table(2, V, dtype=torch.float64), sampling.tempered(0.6)), 2, sampling)
