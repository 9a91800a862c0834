"""The real loop's draws against the target's distribution by chi-square: every warper, K policy, tree and drafter kind.

Some 60,000 tokens in all, with fixed seeds: the real dice, the caches and the policies (test_exact.py sums every
accept, reject and draw of each warper and drafter exactly). Each of the tests below fails by chance with probability
1e-4, so one of them does in less than 1 in 250 choices of seeds.
"""

from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
import torch

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.drafters.lookup import PromptLookup
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.drafters.vocabulary import VocabularyMap
from sparsedraft.speculate.loop.decode import Decoder, Generation, generate_all
from sparsedraft.speculate.loop.drafter import Drafter
from sparsedraft.speculate.policy.policies import NAMES, Constant, policy_named
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.speculate.trees.drafter import TreeDrafter
from toys import Clock, Table, chi_square, likely, p_value, reference

V = 5
ALARM = 1e-4
WARPERS = [
    Sampling(1.0),
    Sampling(0.6),
    Sampling(1.3, top_k=3),
    Sampling(1.6, top_p=0.85),
    Sampling(1.2, min_p=0.2),
    Sampling(0.9, top_k=4, top_p=0.95, min_p=0.02),
]
PENALISED = [Sampling(1.0, repetition_penalty=1.7), Sampling(1.2, 4, 0.9, 0.05, 0.7)]


def target(rows: int, clock: Clock | None = None) -> Table:
    return Table(1, V, rows, clock=clock, cost=lambda n: 1 + 0.1 * n)


def model(sampling: Sampling, rows: int, clock: Clock | None = None, share: float = 0.5, **options) -> ModelDrafter:
    """Accepted about three times in four."""
    table = Table(2, V, rows, clock=clock, cost=lambda n: 0.1).mixed_with(Table(1, V), share)
    return ModelDrafter(table, sampling, **options)


def draw(
    drafter: Drafter,
    policy: Policy,
    sampling: Sampling,
    rows: int,
    length: int,
    clock: Clock | None = None,
    seed: int = 0,
) -> list[Generation]:
    clock = clock or Clock()
    decoder = Decoder(target(rows, clock), drafter, policy, sampling, clock=clock)
    return generate_all(decoder, [[0, 0]] * rows, length, list(range(seed, seed + rows)))


def check_transitions(made: list[Generation], sampling: Sampling) -> None:
    """The token after each two tokens, over texts without end: multinomial given those two."""
    seen: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for one in made:
        text = [0, 0, *one.tokens]
        for a, b, c in zip(text, text[1:], text[2:], strict=False):
            seen[a, b][c] += 1
    statistic, degrees, table = 0.0, 0, target(1).table
    for (a, b), counts in seen.items():
        p, n = reference(table[a, b], sampling, [a, b]).tolist(), sum(counts.values())
        part, free = chi_square([(counts[token], n * p[token]) for token in range(V)])
        statistic, degrees = statistic + part, degrees + free
    assert degrees > 15 and p_value(statistic, degrees) > ALARM


def check_texts(made: list[Generation], sampling: Sampling, length: int) -> None:
    """Whole texts, of which every one has its probability."""
    exact = likely(target(1), [0, 0], sampling, length)
    assert sum(exact.values()) == pytest.approx(1, abs=1e-5)
    seen = Counter(tuple(one.tokens) for one in made)
    statistic, degrees = chi_square([(seen[text], len(made) * chance) for text, chance in exact.items()])
    assert degrees > 10 and p_value(statistic, degrees) > ALARM


def partly(made: list[Generation]) -> None:
    """Drafts are accepted often and rejected often."""
    accepted = sum(step.accepted for one in made for step in one.steps)
    drafted = sum(len(step.drafted) for one in made for step in one.steps)
    assert 0.1 * drafted < accepted < 0.9 * drafted


@pytest.mark.parametrize(("k", "sampling"), zip([1, 3, 1, 3, 3, 1], WARPERS, strict=True), ids=str)
def test_every_warper(sampling: Sampling, k: int) -> None:
    made = draw(model(sampling, 60), Constant(k), sampling, 60, 50)
    partly(made)
    check_transitions(made, sampling)


@pytest.mark.parametrize("sampling", PENALISED, ids=str)
def test_the_penalty(sampling: Sampling) -> None:
    """Whole texts, since every token counts what came before it."""
    made = draw(model(sampling, 1500), Constant(2), sampling, 1500, 3)
    partly(made)
    check_texts(made, sampling, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "sampling"), [(1, WARPERS[0]), (25, WARPERS[-1])], ids=str)
def test_every_policy(name: str, sampling: Sampling, rows: int) -> None:
    """They choose K by what was accepted so far and what it took; that must not lean on what is drawn next."""
    clock, rule = Clock(), policy_named(name, 6)
    drafter = model(sampling, rows, clock, share=0.9, confident=rule.confident)
    made = draw(drafter, rule, sampling, rows, 1500 // rows, clock)
    lengths = {len(step.drafted) for one in made for step in one.steps[:-7]}
    assert lengths == {6} if name == "constant" else len(lengths) > 2
    check_transitions(made, sampling)


@pytest.mark.parametrize(
    ("nodes", "sampling"), [(2, WARPERS[3]), (5, WARPERS[0]), (9, WARPERS[0]), (9, WARPERS[3])], ids=str
)
def test_trees(nodes: int, sampling: Sampling) -> None:
    table = Table(2, V).mixed_with(Table(1, V), 0.5)
    made = draw(TreeDrafter(table, sampling, 2 + nodes % 2), Constant(nodes), sampling, 1, 1500, seed=nodes)
    partly(made)
    check_transitions(made, sampling)


@pytest.mark.parametrize("name", ["auto", "bandit"])
def test_trees_whose_size_a_policy_chooses(name: str) -> None:
    clock, sampling = Clock(), WARPERS[0]
    table = Table(2, V, clock=clock, cost=lambda n: 0.05).mixed_with(Table(1, V), 0.8)
    made = draw(TreeDrafter(table, sampling, 2), policy_named(name, 6), sampling, 1, 1500, clock)
    assert len({len(step.drafted) for step in made[0].steps[:-7]}) > 2
    check_transitions(made, sampling)


@pytest.mark.parametrize(("k", "sampling"), [(1, WARPERS[2]), (3, WARPERS[0])], ids=str)
def test_vocabulary_intersection(sampling: Sampling, k: int) -> None:
    """A drafter of four tokens, three of them the target's."""
    both = VocabularyMap(torch.tensor([0, 1, 4]), torch.tensor([2, 3, 0]), V)
    own = both.inverse()
    drafter = ModelDrafter(
        Table(2, 4, 60), sampling, read=lambda row: [own.get(token, 1) for token in row.tokens], vocabulary=both
    )
    made = draw(drafter, Constant(k), sampling, 60, 50, seed=k)
    partly(made)
    check_transitions(made, sampling)


CERTAIN = {"lookup": lambda s: PromptLookup(), "model": lambda s: model(s, 60, certain=True)}


@pytest.mark.parametrize("make", CERTAIN.values(), ids=CERTAIN)
def test_certain_drafts(make: Callable[[Sampling], Drafter]) -> None:
    sampling = Sampling(0.7)
    made = draw(make(sampling), Constant(3), sampling, 60, 50)
    partly(made)
    check_transitions(made, sampling)


def test_a_wrong_rule_would_be_seen() -> None:
    """The power of the tests above: texts drawn at a temperature 20 % off do not pass."""
    made = draw(model(Sampling(1.2), 60), Constant(1), Sampling(1.2), 60, 50)
    with pytest.raises(AssertionError):
        check_transitions(made, Sampling(1.0))
    made = draw(model(Sampling(1.0), 1500), Constant(1), Sampling(1.0, repetition_penalty=1.4), 1500, 3)
    check_texts(made, Sampling(1.0, repetition_penalty=1.4), 3)  # a drafter with another penalty is still lossless
    with pytest.raises(AssertionError):
        check_texts(made, Sampling(1.0), 3)
