"""Drafting across tokenizers is lossless whatever the drafter does; the way that is chosen."""

import itertools
import random
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch

from across import GREEDY, Scripted, decoded, run, sides, small, tiny_vocabulary
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.tokenizers.vocab import surfaces
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.speculate.loop.decode import Decoder, generate
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.tokenizers import uag
from sparsedraft.speculate.tokenizers.realign import RealignDrafter
from sparsedraft.writers.loaded import LoadedModel
from tiny import build_llama, build_tokenizer
from tokens import FAITHFUL, TEXTS, built
from toys import Table, chi_square, outcomes, p_value


def test_fuzz_scripts() -> None:
    """350 cases: any tokenizers, route, K, rows, wrong drafts, ends and stop strings."""
    dice = random.Random(0)
    kinds = [*FAITHFUL, "unigram", "wordpiece"]
    routes: Counter[str] = Counter()
    accepted = 0
    for case in range(350):
        target, drafter = dice.choice(FAITHFUL), dice.choice(kinds)
        if target == drafter:
            continue
        texts = []
        for _ in range(dice.randint(1, 3)):
            text = dice.choice([*TEXTS.values()])
            start = dice.randrange(len(text))
            texts.append(text[start : start + dice.randint(0, 30)])
        p, q, asked = sides(target, drafter, texts, wrong=dice.choice([0, 0.1, 0.4, 1]))
        if dice.random() < 0.3:  # ends somewhere in the text
            some = dice.choice([i for text in texts for i in p.tokenizer(text or "a")["input_ids"]])
            p = Scripted(p.model, p.tokenizer, p.eos_ids | {some}, p.prompts, p.texts)
        stops = Stops(p.tokenizer, [dice.choice(texts)[-3:-1] or "e"]) if dice.random() < 0.3 else None
        n = dice.randint(1, 40)
        pair = Pair.of(p, q, dice.choice(["auto", "realign", "intersection"]), GREEDY)
        alone = run(Pair.of(p, None, "auto", GREEDY), asked, 0, n, stops=stops)
        made = run(pair.with_lookup() if case % 3 == 0 else pair, asked, dice.randint(0, 7), n, stops=stops)
        assert [(m.tokens, m.finish_reason) for m in made] == [(a.tokens, a.finish_reason) for a in alone], case
        routes[pair.route] += 1
        accepted += sum(step.accepted for m in made for step in m.steps)
    assert sum(routes.values()) >= 290 and min(routes["realign"], routes["intersection"]) > 60
    assert accepted > 600, "the drafts must be taken for this to mean anything"


@pytest.mark.parametrize("route", ["realign", "intersection"])
def test_random_models_write_the_targets_own(route: str) -> None:
    """Random weights write mostly broken characters and special tokens; rows of different lengths at once."""
    kinds = {"tiny": build_tokenizer(), **{name: built(name) for name in ("byte-level", "gemma", "llama", "wordpiece")}}
    models_of = {name: LoadedModel(small(t, 1), t, frozenset({2, 7})) for name, t in kinds.items()}
    dice = random.Random(1)
    for target, drafter in itertools.permutations(kinds, 2):
        p, q = models_of[target], models_of[drafter]
        pair, plain = Pair.of(p, q, route, GREEDY), Pair.of(p, None, "auto", GREEDY)
        pair = replace(pair, window=dice.choice([None, Window(6, 2), Window(16, 0)]))
        prompts = [[dice.randrange(3, p.width) for _ in range(dice.randint(1, 20))] for _ in range(2)]
        asked = [pair.prompt_pair(ids) for ids in prompts]
        alone = [run(plain, [PromptPair(ids, ids)], 0, 12)[0].tokens for ids in prompts]
        assert [made.tokens for made in run(pair, asked, dice.choice([1, 3, 6]), 12)] == alone
        assert [made.tokens for made in run(pair.with_lookup(), asked, 3, 12)] == alone


def test_tokens_beyond_a_models_rows_are_neither_proposed_nor_read() -> None:
    """Both tokenizers have `<think>` as their last token, and a model with one row less."""
    kinds = built("byte-level"), built("gemma")
    p, q, asked = sides("byte-level", "gemma", ["ok <think> so <think>"])
    models_of = [build_llama(1, layers=1, vocab_size=len(t) - 1, hidden_size=32, intermediate_size=32) for t in kinds]
    assert [t.convert_tokens_to_ids("<think>") for t in kinds] == [model.config.vocab_size for model in models_of]
    for target, drafter in (
        (LoadedModel(models_of[0], p.tokenizer, p.eos_ids), q),
        (p, LoadedModel(models_of[1], q.tokenizer, q.eos_ids)),
    ):
        alone = run(Pair.of(target, None, "auto", GREEDY), asked, 0, 30)
        for route in ("realign", "intersection"):
            made = run(Pair.of(target, drafter, route, GREEDY), asked, 4, 30)
            assert made[0].tokens == alone[0].tokens
            assert any(step.drafted for step in made[0].steps)


P = tiny_vocabulary(["a", "b", "c", "ab", "bc", "d"], [("a", "b"), ("b", "c")])


Q = tiny_vocabulary(["c", "bc", "b", "a", "ca"], [("c", "a"), ("b", "c")])


LENGTH = 3


ASKED = PromptPair([0, 1], [3, 2])


def decoder_of(route: str, sampling: Sampling, k: int, seed: int = 1, own: float = 1.0, **options) -> Decoder:
    target, backend = Table(seed, len(P), dtype=torch.float64), Table(seed + 1, len(Q), dtype=torch.float64)
    readers = uag.Readers(P, Q, [(ASKED.target, ASKED.drafter)], len(Q))
    if route == "realign":
        drafter = RealignDrafter(backend, readers, P, Q, ends=frozenset(), eos=None, width=len(P))
        return Decoder(target, drafter, Constant(k), sampling, **options)
    vocabulary = uag.vocabulary_map(surfaces(P), surfaces(Q), len(P), len(Q), (None, None))
    assert len(vocabulary.target) == 4
    drafter = uag.intersection_drafter(backend, readers, vocabulary, sampling.tempered(own))
    return Decoder(target, drafter, Constant(k), sampling, **options)


def exact(sampling: Sampling, seed: int = 1) -> dict[tuple[int, ...], float]:
    """The target's own probability of every answer."""
    table, found = Table(seed, len(P), dtype=torch.float64), {(): 1.0}
    for _ in range(LENGTH):
        found = {
            (*text, token): chance * p
            for text, chance in found.items()
            for token, p in enumerate((table.after([*ASKED.target, *text]) / sampling.temperature).softmax(-1).tolist())
        }
    return found


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(
    ("route", "own"), [("realign", 1.0), ("intersection", 1.0), ("intersection", 0.6), ("intersection", 1.4)]
)
def test_every_outcome_has_the_targets_probability(route: str, own: float, k: int) -> None:
    """All paths through the loop's throws, summed: no chance in it."""
    sampling, found = Sampling(temperature=0.9), defaultdict(float)
    accepted = 0.0

    def whole(dice) -> tuple[tuple[int, ...], int]:
        made = generate(decoder_of(route, sampling, k, own=own, dice=lambda seed: dice), ASKED.target, LENGTH)
        return tuple(made.tokens), sum(step.accepted for step in made.steps)

    for (text, taken), chance in outcomes(whole):
        found[text] += chance
        accepted += chance * taken
    expected = exact(sampling)
    assert sum(found.values()) == pytest.approx(1)
    assert max(abs(found[text] - p) for text, p in expected.items()) < 1e-6
    assert accepted > 0.1, "drafts are taken"


@pytest.mark.parametrize("route", ["realign", "intersection"])
def test_samples_have_the_targets_distribution(route: str) -> None:
    """With the loop's own dice; a false alarm would have had one chance in 1000, but the seeds are fixed."""
    sampling, n = Sampling(temperature=1.1), 900
    seen = Counter(tuple(generate(decoder_of(route, sampling, 2), ASKED.target, LENGTH, i).tokens) for i in range(n))
    cells = [(seen[text], n * p) for text, p in exact(sampling).items()]
    assert sum(count for count, _ in cells) == n
    assert p_value(*chi_square(cells)) > 1e-3


def test_errors_in_one_sentence() -> None:
    p, q = built("gemma"), built("byte-level")
    target, drafter = (LoadedModel(small(t), t, frozenset({2})) for t in (p, q))
    with pytest.raises(UserError, match="different tokenizers") as off:
        Pair.of(target, drafter, "off", GREEDY)
    assert "\n" not in str(off.value) and str(off.value).count(".") == 1
    with pytest.raises(UserError, match="not known"):
        Pair.of(target, drafter, "both", GREEDY)
    other = tiny_vocabulary(["ж", "ш"], [])
    strange = LoadedModel(build_llama(vocab_size=2, layers=1), other, frozenset())
    with pytest.raises(UserError, match="no token in common"):
        Pair.of(LoadedModel(build_llama(vocab_size=6, layers=1), P, frozenset()), strange, "intersection", GREEDY)


def test_auto_goes_by_overlap_and_mode_and_says_so() -> None:
    p = build_tokenizer()
    same = LoadedModel(small(p), p, frozenset({2}))
    assert Pair.of(same, same, "auto", GREEDY).route == "same"
    gemma, level, word, digits = (
        LoadedModel(small(built(name)), built(name), frozenset({2}))
        for name in ("gemma", "byte-level", "wordpiece", "byte-level, digits")
    )
    sampled = Sampling(temperature=1.0)
    chosen = {
        "alike": Pair.of(level, digits, "auto", GREEDY),
        "greedy": Pair.of(gemma, level, "auto", GREEDY),
        "sampled": Pair.of(gemma, level, "auto", sampled),
        "strange": Pair.of(LoadedModel(build_llama(vocab_size=6, layers=1), P, frozenset()), word, "auto", sampled),
    }
    assert {name: pair.route for name, pair in chosen.items()} == {
        "alike": "intersection", "greedy": "realign", "sampled": "intersection", "strange": "realign",
    }  # fmt: skip
    assert len({pair.why for pair in chosen.values()}) == 4
    assert all("%" in chosen[name].why for name in ("alike", "sampled", "strange"))


def test_the_drafters_prompt_has_its_own_special_tokens_once() -> None:
    target, gemma, word = (
        LoadedModel(small(built(n)), built(n), frozenset()) for n in ("byte-level", "gemma", "wordpiece")
    )
    start, end = built("byte-level").convert_tokens_to_ids(["<s>", "<|im_end|>"])
    ids = [start, *built("byte-level")("the fox <s>", split_special_tokens=True)["input_ids"], end]
    for drafter in (gemma, word):
        q = drafter.tokenizer
        own = Pair.of(target, drafter, "realign", GREEDY).prompt_pair(ids).drafter
        first, last = q.convert_tokens_to_ids(["<s>", "</s>"])
        assert own[0] == first and own.count(first) == 1 and last not in own
        assert decoded(q, own).startswith("the fox")
        assert Pair.of(target, drafter, "realign", GREEDY).prompt_pair([start]).drafter, "never empty"
    with_template = LoadedModel(target.model, build_tokenizer(), frozenset({2}))
    chat = [{"role": "user", "content": "the fox"}]
    own = Pair.of(gemma, with_template, "realign", GREEDY).prompt_pair([5], chat).drafter
    assert build_tokenizer().decode(own) == "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\n"
