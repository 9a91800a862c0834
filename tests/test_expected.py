"""What --simulate says of a sampled text is the mean of the real loop over all its chances, given that text."""

from collections import defaultdict

import pytest
import torch

from sparsedraft.measure.acceptance import Histogram
from sparsedraft.measure.simulate import acceptance_of, expected, simulate
from sparsedraft.speculate.decode import Decoder, generate
from sparsedraft.speculate.drafters import ModelDrafter
from sparsedraft.speculate.lookahead import Constant
from sparsedraft.speculate.sampling import Sampling
from toys import Table, outcomes

V, LENGTH, PROMPT = 3, 4, [1, 2, 1]


def table(seed: int, context: int | None = None) -> Table:
    return Table(seed, V, max_length=context, dtype=torch.float64)


def drafter(context: int | None) -> Table:
    return table(2, context).mixed_with(table(1), 0.4)


@pytest.mark.parametrize(
    ("k", "sampling", "eos", "context"),
    [
        (1, Sampling(1.0), frozenset(), None),
        (2, Sampling(0.7, top_k=2), frozenset(), None),
        (3, Sampling(1.2, top_k=2, repetition_penalty=1.4), frozenset(), None),
        (2, Sampling(1.0), frozenset({0}), None),
        (3, Sampling(1.4, min_p=0.02), frozenset({0}), len(PROMPT) + 2),
    ],
    ids=str,
)
def test_every_chance_of_the_real_loop(k: int, sampling: Sampling, eos: frozenset[int], context: int | None) -> None:
    chance: dict[tuple[int, ...], float] = defaultdict(float)
    mean: dict[tuple[int, ...], Histogram] = defaultdict(lambda: Histogram(k))

    def run(dice) -> tuple[tuple[int, ...], Histogram]:
        drafting = ModelDrafter(drafter(context), sampling)
        decoder = Decoder(table(1), drafting, Constant(k), sampling, eos, dice=lambda seed: dice)
        made = generate(decoder, PROMPT, LENGTH)
        return tuple(made.tokens), Histogram.of_steps(made.steps, k)

    for (text, histogram), probability in outcomes(run):
        chance[text] += probability
        for accepted, count in enumerate(histogram.counts):
            mean[text].counts[accepted] += probability * count
        mean[text].drafted += probability * histogram.drafted
        mean[text].tokens += probability * histogram.tokens
    assert sum(chance.values()) == pytest.approx(1, abs=1e-12) and len(chance) > 10
    partly = 0
    for text, probability in chance.items():
        kept = acceptance_of(drafter(context), PROMPT, text, table(1), sampling, None, V).kept
        partly += any(0 < rate < 1 for rate in kept.tolist())
        room = None if context is None else context - len(PROMPT)
        found = expected(kept, k, LENGTH, room)
        assert found.counts == pytest.approx([count / probability for count in mean[text].counts], abs=1e-9)
        assert found.drafted == pytest.approx(mean[text].drafted / probability, abs=1e-9)
        assert found.tokens == pytest.approx(len(text), abs=1e-9)
    assert partly > 10


@pytest.mark.parametrize("context", [None, 5])
def test_certain_drafts_give_the_greedy_histogram(context: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 3, 20):
        for k in (1, 2, 5):
            matches = torch.rand(n, generator=generator) < 0.6
            assert expected(matches.double(), k, n, context) == simulate(matches, k, n, context)
            assert expected(matches.double(), k, n + 4, context) == simulate(matches, k, n + 4, context)
