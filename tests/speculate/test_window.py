"""A drafter that reads the beginning and the end of a text: what it reads, and that its caches hold just that."""

from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Dice, Sampling, probabilities
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.speculate.loop.decode import Decoder, generate
from sparsedraft.speculate.loop.drafter import Drafter
from sparsedraft.speculate.loop.sequence import TokenSequence
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.trees.drafter import TreeDrafter
from sparsedraft.stages.evaluate.acceptance import Histogram
from sparsedraft.stages.evaluate.transcript import Transcript, chains, shorter
from toys import Table, Toy, likely, outcomes
from toys import after_all as of_context

V = 5
windows = st.integers(2, 40).flatmap(lambda size: st.builds(Window, st.just(size), st.integers(0, size - 1)))


def after_all(ids: list[int]) -> torch.Tensor:
    return of_context(ids, V)


def reading(window: Window) -> Callable[[TokenSequence], list[int]]:
    return lambda sequence: window.of(sequence.tokens)


@given(windows, st.integers(1, 300))
def test_the_beginning_and_at_least_half_of_the_window(window: Window, length: int) -> None:
    text = list(range(length))
    read = window.of(text)
    if length <= window.most:
        assert read == text
        return
    end = read[window.sinks :]
    assert read[: window.sinks] == text[: window.sinks] and end == text[-len(end) :]
    assert window.size // 2 < len(end) <= window.size
    assert end[0] > window.sinks


@given(windows, st.integers(1, 200))
def test_what_is_read_grows_until_half_of_it_goes(window: Window, length: int) -> None:
    """So that caches stay valid, and each token is read twice or little more."""
    before, text = window.of(list(range(length))), window.of(list(range(length + 1)))
    if text[: len(before)] != before:
        assert len(before) == window.most
        assert len(text) == window.most + 1 - (window.size + 1) // 2


@given(windows, st.integers(1, 100), st.integers(0, 120))
def test_stretches_are_the_contexts_of_their_places(window: Window, prompt: int, more: int) -> None:
    places = []
    for begin, start, end in window.stretches(prompt, prompt + more):
        assert all(window.begin(place) == begin for place in range(start, end))
        places += range(start, end)
    assert places == list(range(prompt, prompt + more))


@pytest.mark.parametrize(("size", "sinks"), [(1, 0), (4, 4), (8, -1), (0, 0)])
def test_what_no_window_can_be(size: int, sinks: int) -> None:
    with pytest.raises(UserError, match=f"a window of {size} tokens behind {sinks} sinks"):
        Window(size, sinks)


def naive(tokens: list[int], window: Window, k: int) -> list[int]:
    """k greedy drafts after what the window leaves of `tokens`."""
    ids, drafts = window.of(tokens), []
    for _ in range(k):
        drafts.append(int(after_all([*ids, *drafts]).argmax()))
    return drafts


@pytest.mark.parametrize("branching", [1, 2])
@pytest.mark.parametrize(("size", "sinks"), [(2, 0), (6, 2), (9, 4), (12, 1)])
def test_drafts_are_those_after_the_window(size: int, sinks: int, branching: int) -> None:
    """In the loop, over all that caches keep and forget; and the cache holds no more than the window and the drafts."""
    window, k, backend = Window(size, sinks), 3, Toy(after_all)
    if branching == 1:
        drafter: Drafter = ModelDrafter(backend, Sampling(), read=reading(window))
    else:
        drafter = TreeDrafter(backend, Sampling(), branching, window=window)
    target = Toy(lambda ids: after_all(window.of(ids)) + 0.5 * after_all(ids))  # agrees now and then
    decoder, text = Decoder(target, drafter, Constant(k), Sampling()), [1, 2, 3]
    accepted = 0
    for step in decoder.decode([[1, 2, 3]], 60, [0]):
        if branching == 1:
            assert step.drafted == naive(text, window, len(step.drafted))
        elif step.drafted:
            assert step.drafted[0] == naive(text, window, 1)[0]
        text += step.emitted
        accepted += step.accepted
        assert len(backend.ids[0]) <= window.most + k
    assert len(text) == 63 and 5 < accepted < 55


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=3), Sampling(0.9, verification="token")], ids=str)
def test_lossless(sampling: Sampling) -> None:
    """The text has the target's own distribution, over all chances, while the window moves on."""
    length, width, prompt = 3, 3, [1, 2, 0, 1, 2]

    def whole(dice) -> tuple[int, ...]:
        backend = Toy(lambda ids: after_all(ids)[:width])
        drafter = ModelDrafter(backend, sampling, read=reading(Window(4, 1)))
        decoder = Decoder(Table(1, width, dtype=torch.float64), drafter, Constant(2), sampling, dice=lambda seed: dice)
        return tuple(token for step in decoder.decode([prompt], length, [0]) for token in step.emitted)

    found: dict[tuple[int, ...], float] = defaultdict(float)
    for text, probability in outcomes(whole):
        found[text] += probability
    expected = likely(Table(1, width, dtype=torch.float64), prompt, sampling, length)
    assert max(abs(found[text] - chance) for text, chance in expected.items()) < 1e-9


@pytest.mark.parametrize("verification", ["block", "token"])
def test_simulation_of_a_sampled_text(verification: str) -> None:
    """`chains` expects what the real loop does on average, given the text."""
    sampling, k, width, length, prompt = Sampling(1.0, verification=verification), 2, 3, 4, [1, 2, 0, 1]
    chance: dict[tuple[int, ...], float] = defaultdict(float)
    mean: dict[tuple[int, ...], Histogram] = defaultdict(lambda: Histogram(k))

    def target() -> Table:
        return Table(1, width, dtype=torch.float64)

    def drafter() -> ModelDrafter:
        mixed = Toy(lambda ids: 0.5 * after_all(ids)[:width] + 0.5 * target().after(ids))
        return ModelDrafter(mixed, sampling, read=reading(Window(4, 1)))

    def run(dice) -> tuple[tuple[int, ...], Histogram]:
        decoder = Decoder(target(), drafter(), Constant(k), sampling, dice=lambda seed: dice)
        made = generate(decoder, prompt, length)
        return tuple(made.tokens), Histogram.of_steps(made.steps, k)

    for (text, histogram), probability in outcomes(run):
        chance[text] += probability
        for accepted, count in enumerate(histogram.counts):
            mean[text].counts[accepted] += probability * count
    for text, probability in chance.items():
        logits: Callable[[list[int], int], torch.Tensor] = lambda ids, n: target().forward([ids], [n])[0]  # noqa: E731
        shares, steps = chains(drafter(), logits, prompt, text, k, length, sampling)
        found = shorter(steps, k)
        assert found.counts == pytest.approx([count / probability for count in mean[text].counts], abs=1e-9)
        for at, share in enumerate(shares.tolist()):
            before = TokenSequence(0, [*prompt, *text[:at]], len(prompt), 99, Dice(0))
            q = drafter().distributions(before, [])[0]
            p = probabilities(logits(before.tokens, 1), sampling)[0]
            assert share == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-6)


def test_simulation_of_a_greedy_text() -> None:
    """The loop on a transcript makes the steps that it makes with the target."""
    window, prompt, length = Window(6, 2), [1, 2, 3, 0, 1, 2, 3, 4], 40

    def steps(target: object) -> list[tuple[list[int], int]]:
        drafter = ModelDrafter(Toy(after_all), Sampling(), read=reading(window))
        made = generate(Decoder(target, drafter, Constant(3), Sampling()), prompt, length)  # type: ignore[arg-type]
        return [(step.emitted, step.accepted) for step in made.steps]

    real = steps(Toy(lambda ids: after_all(window.of(ids)) + 0.5 * after_all(ids)))
    text = [token for emitted, _ in real for token in emitted]
    assert real == steps(Transcript([[*prompt, *text]], V, None))
