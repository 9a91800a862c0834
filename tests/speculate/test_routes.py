"""Several drafters beside one target: each text is what it is with its own drafter alone, in passes that all share."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from sparsedraft.maths.sampling import Sampling
from sparsedraft.native.extension import is_built
from sparsedraft.speculate.drafters.routed import RoutedDrafter
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.loop.joins import OpenDecoder
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.each import PolicyOfEach
from sparsedraft.speculate.policy.policies import Auto, Constant, policy_named
from sparsedraft.speculate.policy.protocol import Outcome, Policy, Trial
from sparsedraft.speculate.routes import open_decoder
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.prefix import PrefixCache
from tiny import build_llama, build_tokenizer

ROWS, GREEDY = 4, Sampling()
NAMES = ("first", "second", "lookup", None)
RUNTIMES = [pytest.param("native", marks=pytest.mark.skipif(not is_built(), reason="not built")), "transformers"]


@dataclass(frozen=True)
class Asked:
    """A request, and who drafts for it."""

    ids: list[int]
    tokens: int
    seed: int
    sampling: Sampling
    drafter: str | None


@pytest.fixture(scope="module", params=RUNTIMES)
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """The target with itself as a drafter, with another model, and with look-up."""
    folders = [tmp_path_factory.mktemp("routes") / name for name in ("target", "other")]
    for seed, folder in enumerate(folders):
        build_llama(seed=seed, layers=2).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
    target, own, other = (LoadedModel.load(folders[i], runtime=request.param) for i in (0, 0, 1))
    drafters = {"first": own, "second": other, "lookup": "lookup"}
    return {name: Pair.of(target, drafter, "auto", GREEDY) for name, drafter in drafters.items()}


def requests(dice: random.Random, count: int, sampled: bool = True) -> list[Asked]:
    """Requests of all drafters in turn; some prompts repeat themselves, so that look-up finds something."""
    shared = [dice.randrange(3, 300) for _ in range(6)]
    return [
        Asked(
            [*shared, *shared[: dice.randrange(1, 6)], dice.randrange(3, 300)],
            dice.randrange(3, 24),
            seed,
            Sampling(float(sampled and seed % 2)),
            NAMES[seed % len(NAMES)],
        )
        for seed in range(count)
    ]


def together(decoder: OpenDecoder, asked: Sequence[Asked], k: int | None = None) -> list[list[int]]:
    """What each request gets where it joins as soon as there is a row."""
    texts: dict[int, list[int]] = {which: [] for which in range(len(asked))}
    waiting, open_ = [*range(len(asked))], dict[int, int]()
    while waiting or open_:
        while waiting and len(open_) < ROWS:
            of = asked[which := waiting.pop(0)]
            own = 0 if of.drafter is None else k
            joined = decoder.join(of.ids, of.tokens, of.seed, of.sampling, k=own, drafter=of.drafter)
            open_[joined.index] = which
        for step in decoder.step():
            texts[open_[step.row]] += step.emitted
            if step.finish_reason:
                del open_[step.row]
    return [*texts.values()]


def alone(pairs: dict[str, Pair], of: Asked, k: int) -> list[int]:
    pair = pairs[of.drafter] if of.drafter else Pair.of(pairs["first"].target, None, "auto", GREEDY)
    decoder = pair.decoder([pair.prompt_pair(of.ids)], Constant(k), of.sampling)
    return generate(decoder, of.ids, of.tokens, of.seed).tokens


@pytest.mark.parametrize("piece", [None, 3])
def test_each_text_is_what_it_is_with_its_drafter_alone(pairs: dict[str, Pair], piece: int | None) -> None:
    """Token by token, greedy and sampled, with a constant K."""
    asked = requests(random.Random(1), 14)
    decoder = open_decoder(pairs, ROWS, lambda name: policy_named("auto"), GREEDY, piece)
    assert together(decoder, asked, 3) == [alone(pairs, of, 3) for of in asked]


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("policy", ["constant", "auto"])
def test_greedy_texts_are_the_targets_whoever_drafts(pairs: dict[str, Pair], policy: str, lookup: bool) -> None:
    asked = requests(random.Random(2), 14, sampled=False)
    if lookup:  # beside the models
        pairs = {name: pair if name == "lookup" else pair.with_lookup() for name, pair in pairs.items()}
    decoder = open_decoder(pairs, ROWS, lambda name: policy_named(policy), GREEDY)
    plain = [Asked(of.ids, of.tokens, of.seed, GREEDY, None) for of in asked]
    assert together(decoder, asked) == [alone(pairs, of, 0) for of in plain]


def test_a_drafter_sees_its_own_texts_and_the_target_all_of_them_at_once(pairs: dict[str, Pair]) -> None:
    decoder = open_decoder(pairs, ROWS, lambda name: Constant(2), GREEDY)
    assert isinstance(decoder.drafter, RoutedDrafter) and isinstance(decoder.target, PrefixCache)
    seen: dict[str, set[int]] = {}
    for name, drafter in decoder.drafter.drafters.items():

        def propose(sequences: Sequence[TokenSequence], limits: Sequence[int], own=drafter.propose, name=name):
            seen.setdefault(name, set()).update(sequence.index for sequence in sequences)
            found: list[Draft] = own(sequences, limits)
            return found

        drafter.propose = propose  # type: ignore[method-assign]
    passes: list[int] = []
    forward = decoder.target.backend.forward
    decoder.target.backend.forward = lambda ids, logits: passes.append(len(ids)) or forward(ids, logits)
    joined = {name: decoder.join([5, 6, 7, 5, 6], 12, 0, k=None, drafter=name).index for name in ("first", "second")}
    joined["lookup"] = decoder.join([5, 6, 7, 5, 6], 12, 0, drafter="lookup").index
    decoder.join([5, 6, 7, 5, 6], 12, 0, k=0)
    for number in range(3):
        assert len(decoder.step()) == ROWS and passes == [ROWS] * (number + 1)
    assert seen == {name: {index} for name, index in joined.items()}
    decoder.leave(joined["first"])
    assert len(decoder.step()) == ROWS - 1
    assert seen["second"] == {joined["second"]}, "a row that leaves moves the others up, each to its own drafter"


def test_nothing_is_kept_of_texts_that_have_ended(pairs: dict[str, Pair]) -> None:
    decoder = open_decoder(pairs, ROWS, lambda name: policy_named("auto"), GREEDY, 3)
    together(decoder, requests(random.Random(3), 12))
    drafter = decoder.drafter
    assert isinstance(drafter, RoutedDrafter)
    policy = drafter.policy
    for held in (drafter._places, drafter._names, policy._drafter, policy._unread, policy._started, policy._reading):
        assert not held


def test_what_cannot_be(pairs: dict[str, Pair]) -> None:
    decoder = open_decoder(pairs, ROWS, lambda name: Constant(2), GREEDY)
    asked = Asked([5, 6, 7], 9, 0, GREEDY, "first")
    decoder.join(asked.ids, asked.tokens, 0, drafter="first")
    text = [token for step in decoder.step() for token in step.emitted]
    with pytest.raises(ValueError, match="there is no drafter third: name one of first, second, lookup"):
        decoder.join([5], 4, 0, drafter="third")
    while steps := decoder.step():
        text += [token for step in steps for token in step.emitted]
    assert text == alone(pairs, asked, 0), "those under way go on"
    target = pairs["second"].drafter
    with pytest.raises(ValueError, match="several targets"):
        open_decoder({**pairs, "odd": Pair.of(target, "lookup", "auto", GREEDY)}, 2, lambda name: Constant(2), GREEDY)  # type: ignore[arg-type]


def outcome(trials: Sequence[Trial], draft_seconds: float, begins: bool = False) -> Outcome:
    """A step of 1 s beside the drafting."""
    drafted, accepted = (max(trial[i] for trial in trials) for i in (2, 3))
    return Outcome(
        drafted, accepted, accepted + 1, draft_seconds, 1 + draft_seconds, True, begins=begins, rows=2, room=99,
        trials=tuple(trials),
    )  # fmt: skip


class Noted(Constant):
    """A constant K that notes what it is told."""

    def __init__(self, k: int) -> None:
        super().__init__(k)
        self.told: list[Outcome] = []
        self.begun: list[int] = []

    def begin(self, prompt: int, room: int) -> None:
        self.begun.append(prompt)

    def observe(self, outcome: Outcome) -> None:
        self.told.append(outcome)


def test_each_policy_is_told_its_own_part_of_a_step() -> None:
    own = {"good": Noted(4), "bad": Noted(2), "absent": Noted(1)}
    policies: dict[str, Policy] = {**own}
    each = PolicyOfEach(policies)
    each.join(0, "good", 30)
    each.join(1, "bad", 7)
    each.begin(30, 99)
    assert each.next_k() == 4 and each.limit("bad") == 2 and each.limit("absent") == 0
    assert [of.begun for of in own.values()] == [[30], [7], []]
    each.asked("good", [0], 0.5, False)
    each.asked("bad", [1], 0.25, False)
    each.observe(outcome([Trial(0, None, 4, 4), Trial(1, None, 2, 0)], 0.75))
    (good,), (bad,) = own["good"].told, own["bad"].told
    assert (good.drafted, good.accepted, good.emitted, good.late) == (4, 4, 5, 30)
    assert (bad.drafted, bad.accepted, bad.emitted, bad.late) == (2, 0, 1, 7)
    assert (good.draft_seconds, good.step_seconds) == (0.5, 1.5) and (bad.draft_seconds, bad.step_seconds) == (
        0.25,
        1.25,
    )
    assert good.prompt and own["absent"].told == []
    each.next_k()
    each.asked("good", [0], 0.5, False)  # and not the other, which falls behind
    each.observe(outcome([Trial(0, None, 4, 1), Trial(1, 0, 0, 0)], 0.5))
    assert not own["good"].told[1].prompt and own["good"].told[1].late == 0
    assert not own["bad"].told[1].asked and own["bad"].told[1].behind == 1
    each.leave(1)
    each.observe(outcome([Trial(0, None, 4, 1)], 0.5))
    assert len(own["bad"].told) == 2


def test_nobody_drafts_where_one_policy_measures_the_target() -> None:
    each = PolicyOfEach({"auto": Auto(), "constant": Constant(3)})
    each.join(0, "constant", 5)
    assert each.next_k() == 3
    each.join(1, "auto", 5)  # which knows nothing yet of the target
    assert each.plain and each.next_k() == 0 and each.limit("constant") == 0


@pytest.mark.parametrize("waits", [False, True])
def test_a_policy_that_does_not_decide_stops_no_other(pairs: dict[str, Pair], waits: bool) -> None:
    """That of a text with a K of its own; and that of a long prompt while it is read in pieces."""
    first, second = Noted(2), Auto()
    decoder = open_decoder(pairs, ROWS, lambda name: {"first": first}.get(name, second), GREEDY, 4)
    drafted = decoder.join([5, 6, 7], 99, 0, drafter="first").index
    decoder.step()
    decoder.join([9] * 40 if waits else [9, 8], 99, 0, k=None if waits else 2, drafter="second")
    for _ in range(6):
        (step,) = [step for step in decoder.step() if step.row == drafted]
        assert len(step.drafted) == 2
    assert len(first.begun) == 1


def test_a_policy_learns_of_its_own_drafter_in_shared_steps() -> None:
    autos = {"good": Auto(), "bad": Auto()}
    each = PolicyOfEach({**autos})
    each.join(0, "good", 1)
    each.join(1, "bad", 1)
    each.begin(1, 999)
    for number in range(300):
        each.next_k()
        k = {name: each.limit(name) for name in autos}
        for row, (name, n) in enumerate(k.items()):
            if n:
                each.asked(name, [row], 0.05 * n, False)
        trials = [Trial(row, None if n else 0, n, n * (name == "good")) for row, (name, n) in enumerate(k.items())]
        each.observe(outcome(trials, 0.05 * sum(k.values()), begins=number == 0))
    assert autos["good"].meter.best >= 4 and autos["bad"].meter.best == 0
