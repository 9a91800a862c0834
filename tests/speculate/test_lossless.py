"""Real models: greedy text with any drafter, policy, tree or company of rows is the target's own, token for token."""

import copy
from dataclasses import replace

import pytest
import torch

from sparsedraft.maths.sampling import Sampling, probabilities
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.models.tokenizers.templates import chat_ids
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.speculate.loop.decode import Generation, generate, generate_all
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import NAMES, Constant, policy_named
from sparsedraft.speculate.policy.sources import WithLookup
from sparsedraft.stages.evaluate.acceptance import Histogram
from sparsedraft.stages.evaluate.simulation import acceptance, simulate
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.transformers.backend import TransformersBackend
from tiny import build_llama, build_tokenizer

GREEDY = Sampling()
TOKENIZER = build_tokenizer()


def noisy(model, share: float, seed: int = 0):
    """Add Gaussian noise of `share` of each decoder linear's own deviation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for linear in decoder_linears(model).values():
            noise = torch.randn(linear.weight.shape, generator=generator)
            linear.weight += share * linear.weight.std() * noise
    return model


def side(model, eos: frozenset[int] = frozenset()) -> LoadedModel:
    return LoadedModel(model, TOKENIZER, eos)


def prompt(seed: int, n: int) -> list[int]:
    return torch.randint(3, 320, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def made_by(pair: Pair, prompts: list[list[int]], policy, n: int, sampling=GREEDY, branching: int = 1):
    asked = [pair.prompt_pair(ids) for ids in prompts]
    decoder = pair.decoder(asked, policy, sampling, branching=branching)
    return generate_all(decoder, prompts, n, [0] * len(prompts))


def alone(target: LoadedModel, ids: list[int], n: int, sampling: Sampling = GREEDY) -> list[int]:
    return made_by(Pair.of(target, None, "auto", sampling), [ids], Constant(0), n, sampling)[0].tokens


def tried(made: Generation) -> tuple[int, int]:
    return sum(step.accepted for step in made.steps), sum(len(step.drafted) for step in made.steps)


@pytest.mark.parametrize("eos", [frozenset(), frozenset(range(3, 40))])
def test_greedy_equals_the_target_alone_and_simulation_the_loop(eos: frozenset[int]) -> None:
    target = side(build_llama(layers=2), eos)
    drafters = [
        noisy(build_llama(layers=2), 0.1),
        noisy(build_llama(layers=2), 0.4),
        build_llama(seed=5, layers=1),
        build_llama(layers=2, max_position_embeddings=40),
    ]
    partial = 0
    for p in range(2):
        ids = prompt(p, 4 + 9 * p)
        expected = alone(target, ids, 40)
        for model in drafters:
            context = model.config.max_position_embeddings - len(ids)
            pair = Pair.of(target, side(model), "auto", GREEDY)
            ((_, matches),) = (
                acceptance(model, [(ids, expected)], None, GREEDY) if context > len(expected) else ((0, None),)
            )
            for k in (1, 3, 8):
                (made,) = made_by(pair, [ids], Constant(k), 40)
                assert made.tokens == expected
                if matches is not None:
                    assert simulate(matches.ratios > 0.5, k, 40) == Histogram.of_steps(made.steps, k)
                    partial += 0 < tried(made)[0] < tried(made)[1]
    assert partial > 6, "most of the drafters are accepted in part"


@pytest.mark.parametrize("window", [None, Window(16, 2)], ids=str)
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(repetition_penalty=1.4)], ids=str)
def test_every_policy_tree_and_row_gives_the_targets_own_text(sampling: Sampling, window: Window | None) -> None:
    eos = frozenset(range(3, 12))
    target, drafter = side(build_llama(layers=2), eos), side(noisy(build_llama(layers=2), 0.08))
    prompts = [prompt(n, n) for n in (1, 9, 30, 90)]
    expected = [alone(target, ids, 30, sampling) for ids in prompts]
    assert len({len(text) for text in expected}) > 1, "they end at different times"
    pair, lookup = Pair.of(target, drafter, "auto", sampling), Pair.of(target, "lookup", "auto", sampling)
    pair = replace(pair, window=window)
    assert (pair.route, lookup.route) == ("same", "lookup") and pair.batches
    for name in NAMES:
        rule = policy_named(name, 4)
        for _ in range(2):  # a policy goes on from prompt to prompt
            assert [made.tokens for made in made_by(pair, prompts, rule, 30, sampling)] == expected
    assert [made.tokens for made in made_by(lookup, prompts, Constant(3), 30, sampling)] == expected
    sources = set()
    for name in NAMES:
        both = made_by(pair.with_lookup(), prompts, WithLookup(policy_named(name, 4)), 30, sampling)
        assert [made.tokens for made in both] == expected
        sources |= {step.match is None for made in both for step in made.steps if step.drafted}
    assert sources == {True, False}
    accepted = {}
    for branching, nodes in ((1, 5), (2, 5), (3, 12)):
        made = [made_by(pair, [ids], Constant(nodes), 30, sampling, branching)[0] for ids in prompts]
        assert [one.tokens for one in made] == expected
        accepted[branching] = sum(tried(one)[0] for one in made)
    assert min(accepted.values()) > 10


def test_sampled_text_follows_from_the_seed_whoever_else_is_decoded() -> None:
    sampling = Sampling(0.8, top_k=30, repetition_penalty=1.1)
    pair = Pair.of(side(build_llama()), side(noisy(build_llama(), 0.1)), "auto", sampling)
    prompts = [prompt(n, n) for n in (5, 12, 2)]
    asked = [pair.prompt_pair(ids) for ids in prompts]
    together = generate_all(pair.decoder(asked, Constant(3), sampling), prompts, 30, [7, 8, 9])
    for i, ids in enumerate(prompts):
        assert generate(pair.decoder([asked[i]], Constant(3), sampling), ids, 30, 7 + i).tokens == together[i].tokens
        assert generate(pair.decoder([asked[i]], Constant(3), sampling), ids, 30, 1).tokens != together[i].tokens


@pytest.mark.parametrize(("wide", "narrow"), [(384, 320), (320, 384), (320, 320)])
def test_heads_of_unequal_width_are_lossless(wide: int, narrow: int) -> None:
    """One tokenizer, padded differently: tokens that one head has alone are never drafted, but emitted."""
    target = side(build_llama(vocab_size=wide))
    twin = build_llama(vocab_size=wide)
    twin.resize_token_embeddings(narrow)
    for drafter in (twin, noisy(build_llama(vocab_size=narrow), 0.2)):
        pair = Pair.of(target, side(drafter), "auto", GREEDY)
        assert pair.route == "same" and (pair.vocabulary is None) == (wide == narrow)
        for sampling in (GREEDY, Sampling(0.9, top_k=40)):
            prompts = [prompt(n, n) for n in (5, 9, 20)]
            made = made_by(pair, prompts, Constant(3), 40, sampling)
            if sampling.greedy:
                assert [one.tokens for one in made] == [alone(target, ids, 40) for ids in prompts]
            drafted = {token for one in made for step in one.steps for token in step.drafted}
            assert drafted and max(drafted) < min(wide, narrow)
            if wide > narrow:
                assert any(token >= narrow for one in made for token in one.tokens), "beyond the drafter's tokens"
            if drafter is twin:
                assert sum(tried(one)[0] for one in made) > 20


def test_sampled_acceptance_is_the_overlap() -> None:
    p, q, sampling = build_llama(), noisy(build_llama(), 0.3), Sampling(0.8, top_k=20)
    ids, output = list(range(5, 12)), list(range(30, 36))
    ((_, (shares, kept)),) = acceptance(q, [(ids, output)], p, sampling)
    with torch.no_grad():
        logits = [model(torch.tensor([ids + output])).logits[0, 6:-1] for model in (p, q)]
    theirs, mine = (probabilities(x, sampling) for x in logits)
    torch.testing.assert_close(shares, torch.minimum(theirs, mine).sum(-1), rtol=1e-3, atol=1e-4)
    at = torch.arange(len(output)), torch.tensor(output)
    chance = (mine[at] / theirs[at]).clamp(max=1).where(theirs[at] > 0, 0)
    torch.testing.assert_close(kept, chance, rtol=1e-3, atol=1e-4)
    assert 0 < float(shares.mean()) < 1


@pytest.mark.slow
def test_smollm2_real_loop_equals_simulation_and_transformers(smollm2) -> None:
    """On the real model: the same histograms, and greedy text that is that of transformers' own generate."""
    target = checkpoint.load(smollm2)
    drafter = noisy(copy.deepcopy(target), 0.15)
    tokenizer = checkpoint.load_tokenizer(smollm2)
    eos_ids = end_ids(checkpoint.find(smollm2), tokenizer)
    pair = Pair.of(LoadedModel(target, tokenizer, eos_ids), LoadedModel(drafter, tokenizer, eos_ids), "auto", GREEDY)
    prompts, texts = [], []
    for text, n, ks in (("Name three colours.", 8, (1, 5)), ("What is 2 + 2? Answer with a number only.", 8, (2,))):
        ids = chat_ids(tokenizer, [{"role": "user", "content": text}])
        theirs = target.generate(torch.tensor([ids]), max_new_tokens=n, do_sample=False)[0, len(ids) :].tolist()
        ((_, (_, matches)),) = acceptance(drafter, [(ids, theirs)], None, GREEDY)
        assert 0.2 < float(matches.mean()) < 1, "the drafter is accepted in part"
        for k in ks:
            (made,) = made_by(pair, [ids], Constant(k), n)
            assert made.tokens == theirs
            assert Histogram.of_steps(made.steps, k) == simulate(matches > 0.5, k, n)
        prompts.append(ids)
        texts.append(theirs)
    assert made_by(pair, prompts[:1], Constant(6), 8, branching=2)[0].tokens == texts[0]
    assert [one.tokens for one in made_by(pair, prompts, Constant(4), 8)] == texts


def test_passes_are_counted() -> None:
    backend = TransformersBackend(build_llama(layers=1))
    backend.forward([[5, 6]], [1])
    backend.forward([[7]], [1])
    assert backend.passes == 2 and backend.lengths == [3] and backend.max_length == 512
