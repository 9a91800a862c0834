"""The engine's thread: places and a queue, jobs that are given up, failures, and an orderly end."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsedraft.maths.sampling import Sampling
from sparsedraft.serve.counters import Counters
from sparsedraft.serve.engine import Engine, Full, GrammarFailed, Job, Stopped
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.loop.sequence import Step
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Auto, Constant
from sparsedraft.writers.loaded import LoadedModel

GREEDY, WAIT = Sampling(), 30.0


class Watched:
    """Collects what a job gets; `ended` is set once it has ended."""

    def __init__(self, ids: list[int], tokens: int = 8, sampling: Sampling = GREEDY, seed: int = 0, k: int = 2) -> None:
        self.tokens: list[int] = []
        self.error: Exception | None = None
        self.ended, self.begun = threading.Event(), threading.Event()
        self.hold: Callable[[], None] = lambda: None
        self.job = Job(ids, tokens, seed, sampling, None, k, self._on_step)

    def _on_step(self, step: Step | Exception | None) -> None:
        if isinstance(step, Step):
            self.tokens += step.emitted
            self.begun.set()
            self.hold()
            return
        self.error = step
        self.ended.set()


@pytest.fixture(scope="module")
def pair(tiny_checkpoint: Path) -> Pair:
    model = LoadedModel.load(tiny_checkpoint)
    return Pair.of(model, model, "auto", GREEDY)


@pytest.fixture
def engine(pair: Pair):
    found = Engine(pair.open_decoder(2, Constant(2), GREEDY), 2, 3, Counters())
    found.start()
    yield found
    found.stop(WAIT)


def test_more_jobs_than_places_all_get_their_own_text(engine: Engine, pair: Pair) -> None:
    watched = [Watched([7 + i, 9], 6 + i, Sampling(float(i % 2)), seed=i) for i in range(5)]
    for of in watched:
        engine.submit([of.job])
    for of in watched:
        assert of.ended.wait(WAIT) and of.error is None
        decoder = pair.decoder([pair.prompt_pair(of.job.ids)], Constant(2), of.job.sampling)
        assert of.tokens == generate(decoder, of.job.ids, of.job.max_new_tokens, of.job.seed).tokens
    told = engine.counters.text(num_requests_running=0)
    assert 'sparsedraft:request_success_total{finished_reason="length"} 5' in told
    assert f"sparsedraft:generation_tokens_total {sum(len(of.tokens) for of in watched)}" in told


def held(engine: Engine) -> tuple[list[Watched], threading.Event]:
    """Both places taken by jobs that hold the engine until the event."""
    go = threading.Event()
    watched = [Watched([11], 40), Watched([12], 40)]
    engine.submit([of.job for of in watched])
    assert all(of.begun.wait(WAIT) for of in watched)
    watched[0].hold = lambda: go.wait(WAIT)  # type: ignore[assignment,return-value]
    return watched, go


def test_a_full_queue_takes_all_of_a_request_or_nothing(engine: Engine) -> None:
    _, go = held(engine)
    waiting = [Watched([20 + i], 3) for i in range(3)]
    engine.submit([of.job for of in waiting[:2]])
    with pytest.raises(Full):
        engine.submit([Watched([30]).job, Watched([31]).job])
    engine.submit([waiting[2].job])
    assert engine.waiting == 3
    with pytest.raises(Full):
        engine.submit([Watched([32]).job])
    go.set()
    assert all(of.ended.wait(WAIT) for of in waiting)


def test_a_job_that_is_given_up_frees_its_place_within_a_step(engine: Engine) -> None:
    running, go = held(engine)
    waiting, never = Watched([40], 3), Watched([41], 3)
    engine.submit([waiting.job, never.job])
    engine.give_up(never.job)
    assert never.ended.is_set() and engine.waiting == 1, "its place in the queue is free at once"
    engine.give_up(running[1].job)
    before = len(running[1].tokens)
    go.set()
    assert waiting.ended.wait(WAIT) and never.ended.wait(WAIT) and running[1].ended.wait(WAIT)
    assert never.tokens == [] and len(running[1].tokens) <= before + 3
    assert running[0].ended.wait(WAIT) and len(running[0].tokens) == 40


def test_a_step_that_fails_ends_its_texts_and_no_others(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    own = engine.decoder.step

    def fails() -> list[Step]:
        monkeypatch.setattr(engine.decoder, "step", own)
        raise FloatingPointError("NaN")

    monkeypatch.setattr(engine.decoder, "step", fails)
    lost, found = Watched([50]), Watched([50])
    engine.submit([lost.job])
    assert lost.ended.wait(WAIT) and isinstance(lost.error, FloatingPointError)
    engine.submit([found.job])
    assert found.ended.wait(WAIT) and found.error is None and len(found.tokens) == 8


def test_a_text_that_fails_as_it_joins_ends_alone(engine: Engine, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other goes on, from where it was."""
    running, own, go = Watched([70, 71], 40), engine.decoder.step, threading.Event()

    def fails() -> list[Step]:
        if engine.decoder._new and engine.running > 1:
            raise MemoryError
        return own()

    monkeypatch.setattr(engine.decoder, "step", fails)
    running.hold = lambda: go.wait(WAIT)  # type: ignore[assignment,return-value]
    engine.submit([running.job])
    assert running.begun.wait(WAIT)
    lost = Watched([72])
    engine.submit([lost.job])
    go.set()
    assert lost.ended.wait(WAIT) and isinstance(lost.error, MemoryError)
    assert running.ended.wait(WAIT) and running.error is None
    decoder = pair.decoder([pair.prompt_pair([70, 71])], Constant(2), GREEDY)
    assert running.tokens == generate(decoder, [70, 71], 40).tokens


@pytest.mark.parametrize("failing", [70, 72])
def test_a_text_that_is_still_being_read_has_no_part_in_a_step_that_fails(
    engine: Engine, pair: Pair, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Where the reading itself fails (72), it ends, and the text under way goes on."""
    engine.decoder.piece = 2
    running, slow, target = Watched([70, 71], 40), Watched([72] * 30, 4), engine.decoder.target
    go, own = threading.Event(), target.forward

    def fails(ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        waits = [sequence.waits for sequence in engine.decoder._open]
        if any(waits) and target.lengths[waits.index(True)] > 8 and bool(ids[waits.index(True)]) == (failing == 72):
            monkeypatch.setattr(target, "forward", own)
            raise MemoryError
        return own(ids, logits)

    monkeypatch.setattr(target, "forward", fails)
    running.hold = lambda: go.wait(WAIT)  # type: ignore[assignment,return-value]
    engine.submit([running.job])
    assert running.begun.wait(WAIT)
    engine.submit([slow.job])
    go.set()
    assert running.ended.wait(WAIT) and slow.ended.wait(WAIT)
    lost, other = (running, slow) if failing == 70 else (slow, running)
    assert isinstance(lost.error, MemoryError) and other.error is None
    decoder = pair.decoder([pair.prompt_pair(other.job.ids)], Constant(2), GREEDY)
    assert other.tokens == generate(decoder, other.job.ids, other.job.max_new_tokens).tokens


def test_a_policy_learns_though_texts_begin_all_the_time(pair: Pair) -> None:
    """Of short answers one ends in each step, and the next begins: without a break nothing is ever measured."""
    policy = Auto(reads_freely=True)
    engine, begins = Engine(pair.open_decoder(2, policy, GREEDY), 2, 400, Counters()), list[bool]()
    engine.decoder.eos_ids = frozenset()
    own = policy.observe
    policy.observe = lambda outcome: begins.append(outcome.begins) or own(outcome)  # type: ignore[method-assign]
    watched = [Watched([20 + i % 50], 1 if not i else 2, k=0) for i in range(200)]
    engine.start()
    engine.submit([of.job for of in watched])
    assert all(of.ended.wait(WAIT) and of.error is None for of in watched)
    engine.stop(WAIT)
    runs = [sum(1 for _ in run) for begun, run in itertools.groupby(begins) if begun]
    assert max(runs) == Engine.BUSY, "it was busy for so long, and then had a break"
    assert any(costs.plain.value is not None for costs in policy.meter.estimates.by_rows.values())


def test_a_dead_thread_leaves_nobody_waiting(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(pair.open_decoder(1, Constant(2), GREEDY), 1, 8, Counters())
    monkeypatch.setattr(engine, "_admit", lambda: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    engine.start()
    assert engine.alive
    watched = [Watched([80]), Watched([81])]
    engine.submit([of.job for of in watched])
    assert all(of.ended.wait(WAIT) and isinstance(of.error, Stopped) for of in watched)
    engine._thread.join(WAIT)
    assert not engine.alive
    with pytest.raises(Stopped):
        engine.submit([Watched([82]).job])


def test_it_stops_in_order_and_in_time(pair: Pair) -> None:
    engine = Engine(pair.open_decoder(1, Constant(2), GREEDY), 1, 8, Counters())
    engine.start()
    short, long_ = Watched([60], 4), Watched([61], 400)
    engine.submit([short.job, long_.job])
    long_.hold = lambda: time.sleep(0.05)  # type: ignore[assignment]
    assert long_.begun.wait(WAIT)
    start = time.monotonic()
    engine.stop(0.2)
    assert time.monotonic() - start < 10
    assert len(short.tokens) == 4 and isinstance(long_.error, Stopped) and len(long_.tokens) < 400
    with pytest.raises(Stopped):
        engine.submit([Watched([62]).job])


class Failing:
    """A grammar that allows all, and fails after so many tokens: the text ends there."""

    def __init__(self, after: int) -> None:
        self.after = after

    def allowed(self, written: Sequence[int]) -> Tensor:
        mask = torch.ones(320, dtype=torch.bool)
        return torch.arange(320) == 2 if len(written) >= self.after else mask

    def fault(self, written: Sequence[int]) -> str:
        return "it grew too complex" if len(written) > self.after else ""


def test_a_grammar_that_fails_ends_its_own_text_alone(engine: Engine, pair: Pair) -> None:
    failing, other = Watched([7, 9], 30), Watched([8, 9], 8)
    failing.job.grammar = Failing(3)
    engine.submit([failing.job, other.job])
    assert failing.ended.wait(WAIT) and other.ended.wait(WAIT)
    assert isinstance(failing.error, GrammarFailed) and "too complex" in str(failing.error)
    decoder = pair.decoder([pair.prompt_pair(other.job.ids)], Constant(2), GREEDY)
    assert other.error is None and other.tokens == generate(decoder, other.job.ids, 8, 0).tokens
