"""Texts that come and go, drafted by a model with another tokenizer, are the texts that they would be alone."""

import random

import pytest
from test_grammars import texts as texts_with_grammars
from test_joins import GREEDY, ROWS, RUNTIMES, WAYS, Asked, alone, requests, together

from across import small
from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate import routes
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.joins import OpenDecoder
from sparsedraft.speculate.loop.sequence import Step
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.speculate.tokenizers.uag import Readers
from sparsedraft.writers.loaded import LoadedModel
from tiny import build_llama, build_tokenizer
from tokens import built

ROUTES = pytest.mark.parametrize("route", ["realign", "intersection"])
PENALISED = Sampling(0.9, repetition_penalty=1.4)


@pytest.fixture(scope="module", params=RUNTIMES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    folders = [tmp_path_factory.mktemp("across") / name for name in ("target", "drafter")]
    build_llama(seed=0).save_pretrained(folders[0])
    build_tokenizer().save_pretrained(folders[0])
    other = built("byte-level")
    small(other, 1).save_pretrained(folders[1])
    other.save_pretrained(folders[1])
    return tuple(LoadedModel.load(folder, runtime=request.param) for folder in folders)  # type: ignore[return-value]


def drafts_of(decoder: OpenDecoder) -> list[int]:
    """How many tokens each of its steps drafts, once it decodes."""
    counts, own = list[int](), decoder.step

    def step() -> list[Step]:
        steps = own()
        counts.extend(len(step.drafted) for step in steps)
        return steps

    decoder.step = step  # type: ignore[method-assign]
    return counts


@ROUTES
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("piece", [None, 2])
def test_each_text_is_what_it_is_alone(
    models: tuple[LoadedModel, LoadedModel], route: str, k: int, piece: int | None
) -> None:
    """Greedy and sampled: with a constant K a request's draws depend on its seed alone, whatever is read in pieces."""
    pair = Pair.of(*models, route, GREEDY)
    assert pair.route == route
    stops = (None, Stops(pair.target.tokenizer, ["e"]))
    asked = requests(random.Random(k), 10, stops)
    asked += [Asked(3, [40, 41, 42], 9, 5, PENALISED), Asked(9, [*range(30, 60)], 9, 6, WAYS[1])]
    decoder = pair.open_decoder(ROWS, Constant(k), GREEDY, piece)
    counts = drafts_of(decoder)
    assert together(decoder, asked, k=k) == [alone(pair, of, Constant(k)) for of in asked]
    assert sum(counts) > 10


@ROUTES
@pytest.mark.parametrize("lookup", [False, True])
def test_greedy_texts_are_the_targets(models: tuple[LoadedModel, LoadedModel], route: str, lookup: bool) -> None:
    pair, plain = Pair.of(*models, route, GREEDY), Pair.of(models[0], None, "auto", GREEDY)
    pair = pair.with_lookup() if lookup else pair
    asked = [Asked(of.at, of.ids, of.tokens, of.seed, GREEDY) for of in requests(random.Random(5), 10)]
    expected = [alone(plain, of, Constant(0)) for of in asked]
    decoder = pair.open_decoder(ROWS, policy_named("auto"), GREEDY, 3)
    assert together(decoder, asked) == expected
    pairs = {"across": pair, "same": Pair.of(models[0], models[0], "auto", GREEDY)}
    named = routes.open_decoder(pairs, ROWS, lambda _: Constant(2), GREEDY)
    names = ("across", "same", "across")
    indices = [named.join(of.ids, of.tokens, 0, drafter=name).index for of, name in zip(asked, names, strict=False)]
    steps: list[Step] = []
    while named._open:
        steps += named.step()
    found = [[token for step in steps if step.row == index for token in step.emitted] for index in indices]
    assert found == expected[:3]


@ROUTES
def test_texts_that_follow_a_grammar(models: tuple[LoadedModel, LoadedModel], route: str) -> None:
    pair, plain = Pair.of(*models, route, GREEDY), Pair.of(models[0], None, "auto", GREEDY)
    expected = texts_with_grammars(plain.open_decoder(1, Constant(0), GREEDY), 1, GREEDY)
    decoder = pair.open_decoder(ROWS, Constant(3), GREEDY)
    counts = drafts_of(decoder)
    assert texts_with_grammars(decoder, ROWS, GREEDY) == expected
    assert sum(counts) > 0


@ROUTES
def test_a_prompt_is_read_as_it_is_given(models: tuple[LoadedModel, LoadedModel], route: str) -> None:
    """By the drafter's own template, say; and nothing is kept of a text that has ended."""
    pair = Pair.of(*models, route, GREEDY)
    decoder, plain = pair.open_decoder(2, Constant(2), GREEDY), Pair.of(models[0], None, "auto", GREEDY)
    assert isinstance(decoder.drafter, ModelDrafter) and isinstance(decoder.drafter.readers, Readers)
    of = Asked(0, [50, 51, 52], 12, 0, GREEDY)
    index, text = decoder.join(of.ids, of.tokens, 0, GREEDY, read_as=[9, 8, 7, 6]).index, list[int]()
    for _ in range(3):
        text += [token for step in decoder.step() for token in step.emitted]
    assert decoder.drafter._cached[0][:4] == [9, 8, 7, 6] and index in decoder.drafter.readers.by_row
    while decoder._open:
        text += [token for step in decoder.step() for token in step.emitted]
    assert text == alone(plain, of, Constant(0)) and decoder.drafter.readers.by_row == {}


@ROUTES
def test_tokenizers_that_other_threads_use_are_left_alone(models: tuple[LoadedModel, LoadedModel], route: str) -> None:
    """Whether special tokens are text is a setting of a tokenizer: a chat's prompt that is read meanwhile needs it."""
    settings = [model.tokenizer.backend_tokenizer for model in models]  # type: ignore[attr-defined]
    for pair, kept in ((Pair.of(*models, route, GREEDY).shared(), True), (Pair.of(*models, route, GREEDY), False)):
        for setting in settings:
            setting.encode_special_tokens = False
        decoder = pair.open_decoder(1, Constant(2), GREEDY)
        together(decoder, [Asked(0, [50, 51, 52], 6, 0, GREEDY)], 1)
        pair.prompt_pair([50, 51, 52])
        assert any(setting.encode_special_tokens for setting in settings) != kept
