"""What --simulate says of a sampled text is the mean of the real loop over all its chances, given that text."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from sparsedraft.maths.sampling import Dice, Sampling, penalised, probabilities
from sparsedraft.speculate.drafters.lookup import PromptLookup
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.drafters.parallel import ParallelDrafter
from sparsedraft.speculate.drafters.vocabulary import VocabularyMap
from sparsedraft.speculate.loop.decode import Decoder, generate
from sparsedraft.speculate.loop.sequence import Step, TokenSequence
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.stages.evaluate.acceptance import Histogram
from sparsedraft.stages.evaluate.loop import compared
from sparsedraft.stages.evaluate.simulation import acceptance_of, expected, simulate
from sparsedraft.stages.evaluate.transcript import Transcript, chains, shorter
from toys import Table, Toy, after_all, outcomes

V, LENGTH, PROMPT = 3, 4, [1, 2, 1]
OWN = pytest.mark.parametrize("own", [1.0, 0.6, 1.4])  # the drafter's temperature, times the target's


def table(seed: int, context: int | None = None) -> Table:
    return Table(seed, V, max_length=context, dtype=torch.float64)


def target_logits(ids: list[int], n: int) -> torch.Tensor:
    return table(1).forward([ids], [n])[0]


def drafter(context: int | None) -> Table:
    return table(2, context).mixed_with(table(1), 0.4)


@pytest.mark.parametrize(
    ("k", "sampling", "eos", "context"),
    [
        (1, Sampling(1.0), frozenset(), None),
        (2, Sampling(0.7, top_k=2), frozenset(), None),
        (3, Sampling(1.2, top_k=2, repetition_penalty=1.4), frozenset(), None),
        (3, Sampling(1.2, verification="token"), frozenset(), None),
        (2, Sampling(1.0), frozenset({0}), None),
        (2, Sampling(1.3, top_p=0.9), frozenset(), None),
        (3, Sampling(1.4, min_p=0.02), frozenset({0}), len(PROMPT) + 2),
    ],
    ids=str,
)
@OWN
def test_every_chance_of_the_real_loop(
    k: int, sampling: Sampling, eos: frozenset[int], context: int | None, own: float
) -> None:
    drafting = sampling.tempered(own)
    chance: dict[tuple[int, ...], float] = defaultdict(float)
    mean: dict[tuple[int, ...], Histogram] = defaultdict(lambda: Histogram(k))

    def run(dice) -> tuple[tuple[int, ...], Histogram]:
        proposes = ModelDrafter(drafter(context), drafting)
        decoder = Decoder(table(1), proposes, Constant(k), sampling, eos, dice=lambda seed: dice)
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
        ratios = acceptance_of(drafter(context), PROMPT, text, target_logits, sampling, None, V, drafting).ratios
        partly += any(0 < ratio < 1 for ratio in ratios.tolist())
        room = None if context is None else context - len(PROMPT)
        found = expected(ratios, k, LENGTH, room, verification=sampling.verification)
        assert found.counts == pytest.approx([count / probability for count in mean[text].counts], abs=1e-9)
        assert found.drafted == pytest.approx(mean[text].drafted / probability, abs=1e-9)
        assert found.tokens == pytest.approx(len(text), abs=1e-9)
    assert partly > 10


@pytest.mark.parametrize("verification", ["block", "token"])
@pytest.mark.parametrize(
    ("k", "sampling", "eos"),
    [
        (1, Sampling(1.0), frozenset()),
        (3, Sampling(1.2, top_k=2, repetition_penalty=1.4), frozenset()),
        (3, Sampling(0.9), frozenset({0})),
    ],
    ids=str,
)
def test_every_chance_of_drafts_in_one_pass(k: int, sampling: Sampling, eos: frozenset[int], verification: str) -> None:
    """What stands behind mask tokens is another q than behind the text; drafts of fewer tokens have the same q."""
    sampling = replace(sampling, verification=verification)
    chance: dict[tuple[int, ...], float] = defaultdict(float)
    counts: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [0.0] * (k + 1))

    def proposes() -> ParallelDrafter:
        return ParallelDrafter(Toy(lambda ids: after_all(ids, V)), sampling, V)

    def run(dice) -> tuple[tuple[int, ...], Histogram]:
        decoder = Decoder(table(1), proposes(), Constant(k), sampling, eos, dice=lambda seed: dice)
        made = generate(decoder, PROMPT, LENGTH)
        return tuple(made.tokens), Histogram.of_steps(made.steps, k)

    for (text, histogram), probability in outcomes(run):
        chance[text] += probability
        counts[text] = [c + probability * n for c, n in zip(counts[text], histogram.counts, strict=True)]
    assert len(chance) > 10
    for text, probability in chance.items():
        _, found = chains(proposes(), target_logits, PROMPT, text, k + 1, LENGTH, sampling)
        assert shorter(found, k).counts == pytest.approx([count / probability for count in counts[text]], abs=1e-6)


def test_of_a_block_the_first_draft_alone_says_what_is_accepted() -> None:
    """The later ones depend on each other, so that accepted / compared would be above Σ_v min(p, q)."""
    sampling = Sampling(1.0)

    def run(dice) -> list[Step]:
        decoder = Decoder(
            table(1), ModelDrafter(drafter(None), sampling), Constant(3), sampling, dice=lambda seed: dice
        )
        return [next(decoder.decode([PROMPT], LENGTH, [0]))]

    p, q = (probabilities(model.forward([PROMPT], [1])[0], sampling)[0] for model in (table(1), drafter(None)))
    share = float(torch.minimum(p, q).sum())
    for steps, _ in outcomes(run):
        assert compared(steps) == {"accepted": pytest.approx(share, abs=1e-12), "compared": 1}
    assert 0.1 < share < 0.99


def limited(sampling: Sampling, context: int | None) -> ModelDrafter:
    """A drafter that numbers the tokens otherwise, and has none for the target's 1: it reads its own 2 there."""
    vocabulary = VocabularyMap(torch.tensor([0, 2]), torch.tensor([1, 0]), V)
    own = {**vocabulary.inverse(), 1: 2}
    return ModelDrafter(
        drafter(context), sampling, read=lambda row: [own[token] for token in row.tokens], vocabulary=vocabulary
    )


@pytest.mark.parametrize(
    ("k", "sampling", "eos", "context"),
    [
        (1, Sampling(1.0), frozenset(), None),
        (3, Sampling(0.7), frozenset(), None),
        (2, Sampling(1.2, repetition_penalty=1.4), frozenset({0}), None),
        (3, Sampling(1.0), frozenset({1}), len(PROMPT) + 2),
    ],
    ids=str,
)
@OWN
def test_every_chance_of_a_drafter_with_a_part_of_the_vocabulary(
    k: int, sampling: Sampling, eos: frozenset[int], context: int | None, own: float
) -> None:
    drafting = sampling.tempered(own)

    def run(dice) -> tuple[tuple[int, ...], Histogram]:
        decoder = Decoder(table(1), limited(drafting, context), Constant(k), sampling, eos, dice=lambda seed: dice)
        made = generate(decoder, PROMPT, LENGTH)
        return tuple(made.tokens), Histogram.of_steps(made.steps, k)

    texts: dict[tuple[int, ...], list[tuple[Histogram, float]]] = defaultdict(list)
    for (text, histogram), probability in outcomes(run):
        texts[text].append((histogram, probability))
    assert len(texts) > 10
    partly = 0
    for text, found in texts.items():
        total = sum(probability for _, probability in found)
        for most in (k, k + 2):  # longer chains hold the shorter ones
            shares, steps = chains(limited(drafting, context), target_logits, PROMPT, text, most, LENGTH, sampling)
            expected_one = shorter(steps, k)
            for accepted in range(k + 1):
                mean = sum(histogram.counts[accepted] * probability for histogram, probability in found) / total
                assert expected_one.counts[accepted] == pytest.approx(mean, abs=1e-6)
            mean = sum(histogram.drafted * probability for histogram, probability in found) / total
            assert expected_one.drafted == pytest.approx(mean, abs=1e-6)
            assert expected_one.tokens == pytest.approx(len(text), abs=1e-6)
        first = limited(drafting, context).propose([TokenSequence(0, PROMPT, len(PROMPT), 9, Dice(0))], [1])[0].q
        p = probabilities(penalised(table(1).forward([PROMPT], [1])[0], sampling, PROMPT), sampling)[0]
        assert float(shares[0]) == pytest.approx(float(torch.minimum(p, first[0]).sum()), abs=1e-6)
        partly += any(0 < chance < 1 for _, chances in steps for chance in chances)
    assert partly > 5


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1.3, repetition_penalty=1.4)], ids=str)
@pytest.mark.parametrize("eos", [frozenset(), frozenset({2})], ids=str)
def test_where_nothing_is_drawn_a_known_text_tells_all(sampling: Sampling, eos: frozenset[int]) -> None:
    """Look-up's drafts follow from the text, so does the histogram: that of a loop whose target only knows the text."""

    def run(dice) -> tuple[tuple[int, ...], Histogram]:
        decoder = Decoder(table(1), PromptLookup(), Constant(2), sampling, eos, dice=lambda seed: dice)
        made = generate(decoder, PROMPT, LENGTH + 2)
        return tuple(made.tokens), Histogram.of_steps(made.steps, 2)

    accepted = 0
    for (text, histogram), _ in outcomes(run):
        known = Transcript([[*PROMPT, *text]], V, None)
        made = generate(Decoder(known, PromptLookup(), Constant(2), sampling, eos), PROMPT, LENGTH + 2)
        assert tuple(made.tokens) == text and Histogram.of_steps(made.steps, 2) == histogram
        accepted += histogram.accepted
    assert accepted > 0


@pytest.mark.parametrize("context", [None, 5])
def test_certain_drafts_give_the_greedy_histogram(context: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 3, 20):
        for k in (1, 2, 5):
            matches = torch.rand(n, generator=generator) < 0.6
            assert expected(matches.double(), k, n, context) == simulate(matches, k, n, context)
            assert expected(matches.double(), k, n + 4, context) == simulate(matches, k, n + 4, context)
