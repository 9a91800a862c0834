"""Texts that follow a grammar have exactly the target's masked distribution, and greedy the text without a drafter."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsedraft.maths.sampling import Sampling
from sparsedraft.native.extension import is_built
from sparsedraft.speculate.drafters.lookup import PromptLookup
from sparsedraft.speculate.drafters.mixed import MixedDrafter
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.drafters.parallel import ParallelDrafter
from sparsedraft.speculate.drafters.vocabulary import VocabularyMap
from sparsedraft.speculate.loop.drafter import Drafter
from sparsedraft.speculate.loop.grammar import permitted, within
from sparsedraft.speculate.loop.joins import OpenDecoder
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.speculate.policy.protocol import Choice
from sparsedraft.writers.loaded import LoadedModel
from tiny import build_llama, build_tokenizer
from toys import Table, Toy, after_all, outcomes, reference

V, LENGTH, END = 6, 4, 5
PROMPT = [1, 3, 0, 1, 3]
RUNTIMES = [pytest.param("native", marks=pytest.mark.skipif(not is_built(), reason="not built")), "transformers"]


class Rules:
    """A Grammar: which of `width` tokens may follow depends on the last one and on the length; `end` is one of them."""

    def __init__(self, seed: int = 0, width: int = V, end: int = END, share: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.rand(2, width + 1, width, generator=generator) < share
        self.table[:, :, 0] |= ~self.table.any(-1)
        self.end = end

    def allowed(self, written: Sequence[int]) -> Tensor | None:
        if self.end in written:
            return None
        return self.table[len(written) % 2, written[-1] if written else -1]

    def fault(self, written: Sequence[int]) -> str:
        return ""

    def accepts(self, text: Sequence[int]) -> bool:
        masks = [self.allowed(text[:i]) for i in range(len(text))]
        return all(mask is not None and mask[token] for mask, token in zip(masks, text, strict=True))


class Open:
    """What a Toy needs so that texts come and go."""

    ids: list[list[int]]

    def admit(self, ids: Sequence[int]) -> int:
        self.ids.append([])
        return 0

    def select(self, rows: Sequence[int]) -> None:
        self.ids = [self.ids[row] for row in rows]


class OpenTable(Open, Table):
    """A Table that is open."""


class OpenToy(Open, Toy):
    """A Toy that is open."""


def table(seed: int, width: int = V) -> OpenTable:
    return OpenTable(seed, width, 0, dtype=torch.float64)


def expected(sampling: Sampling, rules: Rules) -> dict[tuple[int, ...], float]:
    """The probability of each text, by transformers' processors on the masked logits."""
    target, found, going = table(1), {}, {(): 1.0}
    while going:
        longer: dict[tuple[int, ...], float] = {}
        for text, chance in going.items():
            context = [*PROMPT, *text]
            mask = rules.allowed(text)
            assert mask is not None
            after = reference(target.after(context).masked_fill(~mask, -torch.inf), sampling, context).tolist()
            for token, p in enumerate(after):
                new = (*text, token)
                done = len(new) == LENGTH or token == END
                (found if done else longer)[new] = chance * p
        going = longer
    return {text: chance for text, chance in found.items() if chance > 0}


def emitted(drafter: Callable[[], Drafter], k: int, sampling: Sampling, rules: Rules) -> dict[tuple[int, ...], float]:
    """The probability of each text, over all paths through the draws of whole decodes."""

    def whole(dice) -> tuple[int, ...]:
        decoder = OpenDecoder(table(1), drafter(), Constant(k), sampling, frozenset([END]), dice=lambda seed: dice)
        sequence = decoder.join(PROMPT, LENGTH, 0)
        sequence.grammar = rules
        while not sequence.finish_reason:
            decoder.step()
        return tuple(sequence.written)

    found: dict[tuple[int, ...], float] = defaultdict(float)
    for text, probability in outcomes(whole):
        found[text] += probability
    return found


def check(drafter: Callable[[], Drafter], k: int, sampling: Sampling, rules: Rules) -> None:
    p, found = expected(sampling, rules), emitted(drafter, k, sampling, rules)
    assert sum(p.values()) == pytest.approx(1) and len(p) > 1
    assert set(found) <= set(p) and all(rules.accepts(text) for text in found)
    assert max(abs(found.get(text, 0.0) - chance) for text, chance in p.items()) < 1e-9


SAMPLINGS = pytest.mark.parametrize("sampling", [
    Sampling(1.0), Sampling(0.8, top_k=2), Sampling(1.2, top_p=0.7), Sampling(1.0, min_p=0.3),
    Sampling(0.9, repetition_penalty=1.5), Sampling(1.0, verification="token"),
], ids=str)  # fmt: skip


@SAMPLINGS
@pytest.mark.parametrize("seed", range(2))
def test_drafts_that_are_drawn(sampling: Sampling, seed: int) -> None:
    check(lambda: ModelDrafter(table(2), sampling.tempered(0.7)), 2, sampling, Rules(seed))


@SAMPLINGS
def test_drafts_of_one_pass(sampling: Sampling) -> None:
    backend = lambda: OpenToy(lambda ids: after_all(ids, V), 0)  # noqa: E731
    check(lambda: ParallelDrafter(backend(), sampling, V), 2, sampling, Rules(1))


@SAMPLINGS
def test_drafts_that_are_certain(sampling: Sampling) -> None:
    check(PromptLookup, 3, sampling, Rules(0, share=0.8))
    check(lambda: ModelDrafter(table(2), sampling, certain=True), 2, sampling, Rules(0))
    choose = lambda place: Choice(place.match if place.match == 1 else None, place.limit)  # noqa: E731
    check(lambda: MixedDrafter(ModelDrafter(table(2), sampling), choose), 2, sampling, Rules(2))


def test_a_drafter_that_has_none_of_the_tokens_that_may_come() -> None:
    """It shares three tokens with the target, and the grammar often asks for another."""
    shared = VocabularyMap(torch.tensor([0, 2, 4]), torch.tensor([1, 0, 2]), V)
    ids, sampling = shared.inverse(), Sampling(1.0)

    def drafter() -> Drafter:
        read = lambda sequence: [ids.get(token, 0) for token in sequence.tokens]  # noqa: E731
        return ModelDrafter(table(2, 3), sampling, read=read, vocabulary=shared)

    check(drafter, 2, sampling, Rules(3, share=0.3))


def test_the_mask_of_another_place_is_found() -> None:
    """What the sums above rely on: with the drafts' masks one place late, the text is another."""

    class Late(Rules):
        def allowed(self, written: Sequence[int]) -> Tensor | None:
            return super().allowed(written[1:])

    sampling, rules = Sampling(1.0), Rules(0)
    found = emitted(lambda: ModelDrafter(table(2), sampling), 2, sampling, Late(0))
    p = expected(sampling, rules)
    assert any(abs(found.get(text, 0.0) - p.get(text, 0.0)) > 1e-3 for text in {*p, *found})


def test_rows_behind_what_is_forbidden_stay_and_logits_are_not_changed() -> None:
    rules, logits = Rules(0), torch.randn(4, V)
    before, first = logits.clone(), rules.allowed([])
    assert first is not None
    good, bad = int(first.nonzero()[0]), int((~first).nonzero()[0])
    masked = permitted(logits, rules, [], [good, good, good])
    assert torch.equal(logits, before) and torch.equal(masked[0] > -torch.inf, first)
    forbidden = permitted(logits, rules, [], [bad, good, good])
    assert torch.equal(forbidden[1:], logits[1:]) and torch.equal(forbidden[0], masked[0])
    assert permitted(logits, None, [], [bad]) is logits
    assert torch.equal(permitted(logits, rules, [END]), logits)
    assert within(rules, [], [bad, good]) == [] and within(None, [], [bad]) == [bad]
    assert within(rules, [END], [good]) == []


@pytest.fixture(scope="module", params=RUNTIMES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    folders = [tmp_path_factory.mktemp("grammars") / name for name in ("target", "drafter")]
    for seed, folder in enumerate(folders):
        build_llama(seed=seed).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
    return tuple(LoadedModel.load(folder, runtime=request.param) for folder in folders)  # type: ignore[return-value]


def texts(decoder: OpenDecoder, rows: int, how: Sampling) -> list[list[int]]:
    """Eight texts, `rows` at once; every other one follows a grammar of its own."""
    dice, waiting, found, rules = random.Random(0), [*range(8)], {}, {}
    prompts = [[dice.randrange(3, 300) for _ in range(dice.randrange(2, 8))] for _ in waiting]
    going: dict[int, int] = {}
    while waiting or going:
        while waiting and len(going) < rows:
            which = waiting.pop(0)
            sequence = decoder.join(prompts[which], 14, which, how)
            sequence.grammar = Rules(which, 320, 2, share=0.02) if which % 2 else None
            going[sequence.index], found[which], rules[which] = which, sequence, sequence.grammar
        for step in decoder.step():
            if step.finish_reason:
                del going[step.row]
    assert all(rule is None or rule.accepts(found[which].written) for which, rule in rules.items())
    return [found[which].written for which in range(8)]


@pytest.mark.parametrize("drafter", ["model", "same", "lookup", "both"])
@pytest.mark.parametrize("policy", ["auto", "confidence"])
def test_greedy_texts_are_those_without_a_drafter(
    models: tuple[LoadedModel, LoadedModel], drafter: str, policy: str
) -> None:
    """Several at once, some with grammars, some without; the same model as its own drafter drafts natively, too."""
    plain = Pair.of(models[0], None, "auto", Sampling())
    alone = texts(plain.open_decoder(1, Constant(0), Sampling()), 1, Sampling())
    other = {"model": models[1], "same": models[0], "lookup": "lookup", "both": models[1]}[drafter]
    pair = Pair.of(models[0], other, "auto", Sampling())
    pair = pair.with_lookup() if drafter == "both" else pair
    for rows in (1, 3):
        assert texts(pair.open_decoder(rows, policy_named(policy), Sampling()), rows, Sampling()) == alone


def test_drafts_of_the_target_itself_are_all_accepted(models: tuple[LoadedModel, LoadedModel]) -> None:
    """The drafter follows the grammar, so nothing is lost to it; without the mask, drafts would fall."""
    pair = Pair.of(models[0], models[0], "auto", Sampling())
    decoder = pair.open_decoder(1, Constant(3), Sampling())
    sequence = decoder.join([7, 8, 9], 16, 0)
    sequence.grammar = Rules(1, 320, 2, share=0.02)
    steps = []
    while not sequence.finish_reason:
        steps += decoder.step()
    assert sum(len(step.drafted) for step in steps) > 6
    assert all(step.accepted == len(step.drafted) or step.finish_reason for step in steps)


def test_sampled_texts_with_a_seed_are_the_same_beside_others(models: tuple[LoadedModel, LoadedModel]) -> None:
    pair, how = Pair.of(*models, "auto", Sampling()), replace(Sampling(1.0), top_k=20)
    alone, together = (texts(pair.open_decoder(n, Constant(2), how), n, how) for n in (1, 3))
    assert alone == together
