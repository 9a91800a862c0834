"""Texts that join and leave while others are under way are the texts that they would be alone."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.native.extension import is_built
from sparsedraft.speculate.drafters.mixed import MixedDrafter
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.loop.joins import OpenDecoder
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.speculate.policy.reading import Reading
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.prefix import PrefixCache
from tiny import build_llama, build_tokenizer

ROWS, GREEDY = 3, Sampling()
WAYS = (GREEDY, Sampling(1.0), Sampling(0.7, top_k=20), Sampling(1.3, verification="token"), Sampling(0.8, top_p=0.9))
RUNTIMES = [pytest.param("native", marks=pytest.mark.skipif(not is_built(), reason="not built")), "transformers"]


@dataclass(frozen=True)
class Asked:
    """A request: when it comes (a number of steps), and what it is."""

    at: int
    ids: list[int]
    tokens: int
    seed: int
    sampling: Sampling
    stops: Stops | None = None


@pytest.fixture(scope="module", params=RUNTIMES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    folders = [tmp_path_factory.mktemp("joins") / name for name in ("target", "drafter")]
    for seed, folder in enumerate(folders):
        build_llama(seed=seed).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
    return tuple(LoadedModel.load(folder, runtime=request.param) for folder in folders)  # type: ignore[return-value]


def requests(dice: random.Random, count: int, stops: Sequence[Stops | None] = (None,)) -> list[Asked]:
    """Requests, some of whose prompts begin with another's."""
    shared = [dice.randrange(3, 300) for _ in range(12)]
    return [
        Asked(
            dice.randrange(0, 25),
            shared[: dice.randrange(0, 12)] + [dice.randrange(3, 300) for _ in range(dice.randrange(1, 6))],
            dice.randrange(1, 18),
            seed,
            dice.choice(WAYS),
            dice.choice(stops),
        )
        for seed in range(count)
    ]


def together(decoder: OpenDecoder, asked: Sequence[Asked], rows: int = ROWS, k: int | None = None) -> list[list[int]]:
    """What each request gets, where it waits for a row if none is free. `k`: drafted a step, whatever the policy."""
    texts: dict[int, list[int]] = {}
    waiting, open_, number = sorted(range(len(asked)), key=lambda i: asked[i].at), {}, 0
    while waiting or open_:
        while waiting and len(open_) < rows and (asked[waiting[0]].at <= number or not open_):
            which = waiting.pop(0)
            of = asked[which]
            open_[decoder.join(of.ids, of.tokens, of.seed, of.sampling, of.stops, k).index] = which
        for step in decoder.step():
            texts.setdefault(open_[step.row], []).extend(step.emitted)
            if step.finish_reason:
                del open_[step.row]
        number += 1
    return [texts[i] for i in range(len(asked))]


def alone(pair: Pair, of: Asked, policy: Policy) -> list[int]:
    decoder = pair.decoder([pair.prompt_pair(of.ids)], policy, of.sampling, stops=of.stops)
    return generate(decoder, of.ids, of.tokens, of.seed).tokens


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_each_text_is_what_it_is_alone(models: tuple[LoadedModel, LoadedModel], k: int, seed: int) -> None:
    """Token by token, greedy and sampled: with a constant K a request's draws depend on its seed alone."""
    pair = Pair.of(models[0], models[1] if k else None, "auto", GREEDY)
    stops = (None, Stops(pair.target.tokenizer, ["e"]))
    asked = requests(random.Random(seed), 10, stops)
    texts = together(pair.open_decoder(ROWS, Constant(k), GREEDY), asked)
    assert texts == [alone(pair, of, Constant(k)) for of in asked]
    assert len({len(text) for text in texts}) > 2, "they end at different times"


@pytest.mark.parametrize("piece", [1, 2, 5])
@pytest.mark.parametrize("k", [0, 2])
def test_prompts_that_are_read_in_pieces(models: tuple[LoadedModel, LoadedModel], k: int, piece: int) -> None:
    """No step reads more than a piece and what the texts under way have drafted; the texts are those of one reading,
    sampled ones too, whose drafter reads in pieces before they begin."""
    pair = Pair.of(*models, "auto", GREEDY)
    asked = requests(random.Random(piece), 10)
    decoder = pair.open_decoder(ROWS, policy_named("auto"), GREEDY, piece)
    read: list[int] = []
    assert isinstance(decoder.target, PrefixCache) and isinstance(decoder.drafter, ModelDrafter)
    for backend in (decoder.target.backend, decoder.drafter.backend.backend):  # type: ignore[attr-defined]
        own = backend.forward
        backend.forward = lambda ids, logits, own=own: read.append(sum(map(len, ids))) or own(ids, logits)
    assert together(decoder, asked, k=k) == [alone(pair, of, Constant(k)) for of in asked]
    assert max(read) <= piece + ROWS * max(k + 2, piece), "what is left of each text's drafter is read with its draft"
    if piece > 1:
        assert max(len(of.ids) for of in asked) > 2 * piece, "some are longer"


@pytest.mark.parametrize("policy", ["auto", "confidence", "bandit"])
@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("piece", [None, 3])
def test_greedy_texts_do_not_depend_on_what_a_policy_chooses(
    models: tuple[LoadedModel, LoadedModel], policy: str, lookup: bool, piece: int | None
) -> None:
    pair = Pair.of(*models, "auto", GREEDY)
    pair = pair.with_lookup() if lookup else pair
    asked = [Asked(of.at, of.ids, of.tokens, of.seed, GREEDY) for of in requests(random.Random(5), 10)]
    plain = Pair.of(models[0], None, "auto", GREEDY)
    texts = together(pair.open_decoder(ROWS, policy_named(policy), GREEDY, piece), asked)
    assert texts == [alone(plain, of, Constant(0)) for of in asked]


@pytest.mark.parametrize("pays", [True, False])
def test_a_drafter_that_is_not_worth_its_reading_reads_nothing(
    models: tuple[LoadedModel, LoadedModel], pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside look-up, which drafts meanwhile; where it pays, the drafter reads a piece a step."""
    monkeypatch.setattr(Reading, "MARGIN", 0.0 if pays else math.inf)
    pair = Pair.of(*models, "auto", GREEDY).with_lookup()
    asked = [Asked(0, [*range(20, 30)] * 4, 16, seed, GREEDY) for seed in range(2)]
    decoder = pair.open_decoder(ROWS, Constant(2), GREEDY, piece=6)
    read: list[int] = []
    assert isinstance(decoder.drafter, MixedDrafter) and isinstance(decoder.drafter.model, ModelDrafter)
    backend = decoder.drafter.model.backend
    own = backend.forward
    monkeypatch.setattr(backend, "forward", lambda ids, logits: read.append(sum(map(len, ids))) or own(ids, logits))
    by_lookup, step = list[int](), decoder.step
    decoder.step = lambda: [s for s in step() if by_lookup.append(s.match or 0) or True]  # type: ignore[method-assign]
    plain = Pair.of(models[0], None, "auto", GREEDY)
    assert together(decoder, asked) == [alone(plain, of, Constant(0)) for of in asked]
    assert any(by_lookup) or pays
    assert bool(read) == pays and max(read, default=0) <= 6


def test_a_drafter_that_was_not_asked_for_long_reads_in_pieces(models: tuple[LoadedModel, LoadedModel]) -> None:
    """Also in the step in which a policy first says that it is to draft."""
    policy = Constant(0)
    decoder = Pair.of(*models, "auto", GREEDY).open_decoder(1, policy, GREEDY, piece=5)
    read: list[int] = []
    assert isinstance(decoder.drafter, ModelDrafter)
    backend = decoder.drafter.backend.backend  # type: ignore[attr-defined]
    own, whole = backend.forward, getattr(backend, "draft", None)
    backend.forward = lambda ids, logits: read.append(sum(map(len, ids))) or own(ids, logits)
    if whole is not None:
        backend.draft = lambda counts, ids: read.append(sum(map(len, ids))) or whole(counts, ids)
    decoder.join([*range(30, 60)], 40, 0)
    for number in range(20):
        policy.k = 2 * (number > 12)
        decoder.step()
    assert read and max(read) <= 5 + 2


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_prompt_longer_than_its_drafters_context(tmp_path: Path, runtime: str, k: int | None) -> None:
    """Its drafter reads none of it, drafts nothing, and does not stop the others."""
    for seed, (name, context) in enumerate((("target", 512), ("drafter", 24))):
        build_llama(seed=seed, max_position_embeddings=context).save_pretrained(tmp_path / name)
        build_tokenizer().save_pretrained(tmp_path / name)
    pair = Pair.of(
        *(LoadedModel.load(tmp_path / name, runtime=runtime) for name in ("target", "drafter")), "auto", GREEDY
    )
    long = [Asked(at, [at + 3] * count, 12, at, WAYS[at % 2 if k else 0]) for at, count in enumerate((30, 23, 24, 40))]
    asked = [*long, *(Asked(i, [50 + i, 9], 12, i, GREEDY) for i in range(3))]
    for piece in (5, None):
        texts = together(pair.open_decoder(ROWS, Constant(2), GREEDY, piece), asked, k=k)
        assert texts == [alone(pair, of, Constant(2)) for of in asked]


def test_a_text_that_is_given_up_leaves_its_row(models: tuple[LoadedModel, LoadedModel]) -> None:
    pair = Pair.of(*models, "auto", GREEDY)
    decoder = pair.open_decoder(1, Constant(2), GREEDY)
    first = decoder.join([5, 6, 7], 16, 0).index
    decoder.step()
    with pytest.raises(ValueError, match="all 1 rows are taken"):
        decoder.join([9, 10], 4, 1)
    decoder.leave(first)
    assert decoder.step() == []
    of = Asked(0, [9, 10], 9, 1, Sampling(1.0))
    assert together(decoder, [of], 1) == [alone(pair, of, Constant(2))]
    before = decoder.join([5, 6, 7], 16, 0).index
    decoder.leave(before)  # before its first step
    assert decoder.step() == [] and together(decoder, [of], 1) == [alone(pair, of, Constant(2))]


def test_what_a_row_has_read_is_not_read_again(models: tuple[LoadedModel, LoadedModel]) -> None:
    """A chat's next turn reads what is new, target and drafter; an answer of another chat in between takes no row of
    it while one is free."""
    pair = Pair.of(*models, "auto", GREEDY)
    decoder = pair.open_decoder(2, Constant(2), GREEDY)
    read: list[int] = []
    assert isinstance(decoder.target, PrefixCache)
    own = decoder.target.backend.forward
    decoder.target.backend.forward = lambda ids, logits: read.append(sum(map(len, ids))) or own(ids, logits)
    prompt = [*range(10, 40)]
    (answer,) = together(decoder, [Asked(0, prompt, 8, 0, GREEDY)], 2)
    together(decoder, [Asked(0, [200, 201, 202], 4, 0, GREEDY)], 2)
    read.clear()
    turn = Asked(0, [*prompt, *answer, 50, 51], 8, 0, GREEDY)
    (text,) = together(decoder, [turn], 2)
    assert read[0] <= 2 + 1 + 2, "what is new, the last token of the answer, and drafts"
    assert text == alone(pair, turn, Constant(2))


def test_where_texts_cannot_come_and_go(models: tuple[LoadedModel, LoadedModel]) -> None:
    pair = Pair.of(*models, "auto", GREEDY)
    decoder = pair.open_decoder(2, Constant(1), GREEDY)
    with pytest.raises(UserError, match="the prompt is empty"):
        decoder.join([], 4, 0)
    assert decoder.step() == []
    together(decoder, [Asked(0, [5], 3, 0, GREEDY)], 2)


@pytest.mark.parametrize("drafter", ["lookup", "both"])
def test_nothing_is_kept_of_texts_that_have_ended(models: tuple[LoadedModel, LoadedModel], drafter: str) -> None:
    pair = Pair.of(models[0], models[1] if drafter == "both" else "lookup", "auto", GREEDY)
    pair = pair.with_lookup() if drafter == "both" else pair
    decoder = pair.open_decoder(2, policy_named("auto"), GREEDY)
    together(decoder, [Asked(0, [5 + i, 9], 3, 0, GREEDY) for i in range(12)], 2)
    lookup = getattr(decoder.drafter, "lookup", decoder.drafter)
    assert lookup._texts == {} and decoder._unread == {} and decoder._drafter_started == set()
