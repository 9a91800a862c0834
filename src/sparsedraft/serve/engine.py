"""The thread that decodes: requests wait in a bounded queue, join the decoder as places are free, and get their steps.

Only this thread touches the decoder. What others ask of it (to begin, to give up) it does between two steps.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from sparsedraft.maths.sampling import Sampling
from sparsedraft.serve.counters import Counters
from sparsedraft.speculate.loop.grammar import Grammar
from sparsedraft.speculate.loop.joins import OpenDecoder
from sparsedraft.speculate.loop.sequence import Step, TokenSequence
from sparsedraft.speculate.loop.stops import Stops


class Full(Exception):
    """The queue has no room."""


class Stopped(Exception):
    """The server is shutting down."""


class GrammarFailed(Exception):
    """The grammar of an answer could not be followed to its end."""


@dataclass(eq=False)
class Job:
    """A text to be written. `on_step` gets each of its steps, and None or an error once it has ended, on the engine's
    thread; it must not block."""

    ids: list[int]
    max_new_tokens: int
    seed: int
    sampling: Sampling
    stops: Stops | None
    k: int | None
    on_step: Callable[[Step | Exception | None], None]
    top_logprobs: int | None = None
    drafter: str | None = None
    grammar: Grammar | None = None
    read_as: list[int] | None = None
    given_up: bool = False
    sequence: TokenSequence | None = field(default=None, init=False)  # once it has joined

    @property
    def cached(self) -> int:
        """Tokens of the prompt that had been read before."""
        return self.sequence.cached if self.sequence else 0

    @property
    def fault(self) -> Exception | None:
        """Why the text that has ended is not whole."""
        why = self.grammar.fault(self.sequence.written) if self.grammar is not None and self.sequence else ""
        return GrammarFailed(why) if why else None


class Engine:
    """Decodes up to `rows` jobs at once with `decoder`, which is open; up to `queue` more wait.

    A policy learns what steps cost from those in which no text begins. Under a load of short answers there are none, so
    after BUSY steps that began texts one begins none, and those that wait do so for one step more.
    """

    BUSY = 20

    def __init__(self, decoder: OpenDecoder, rows: int, queue: int, counters: Counters) -> None:
        self.decoder, self.rows, self.queue, self.counters = decoder, rows, queue, counters
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}  # by the index of its sequence
        self._changed, self._stopping = threading.Condition(), False
        self._begun = 0  # steps in a row with jobs that joined
        self._thread = threading.Thread(target=self._work, name="sparsedraft-decode", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are being worked on."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let these jobs wait for a place: all, or Full. Stopped after `stop`, and where the thread is dead."""
        with self._changed:
            if self._stopping or not self.alive:
                raise Stopped
            if len(self._waiting) + len(jobs) > self.queue + max(0, self.rows - len(self._running)):
                raise Full
            self._waiting += jobs
            self._changed.notify()

    def give_up(self, job: Job) -> None:
        """Write no more of a job; its place is free after the step under way, or at once where it still waits."""
        with self._changed:
            job.given_up = True
            waits = job in self._waiting
            if waits:
                self._waiting.remove(job)
            self._changed.notify()
        if waits:
            _tell(job, None)

    def stop(self, grace: float) -> None:
        """Take no more jobs, let those that run or wait end within `grace` seconds; the others end with Stopped."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(grace)
        with self._changed:
            waiting, self._waiting = [*self._waiting], deque()
            for job in [*self._running.values()]:  # the engine's thread changes it meanwhile
                job.given_up = True
            self._changed.notify()
        for job in waiting:
            _tell(job, Stopped())
        self._thread.join()

    def _work(self) -> None:
        try:
            while self._ready():
                self._admit()
                self._step()
        finally:  # whatever happened, nobody is left waiting
            with self._changed:
                left = [*self._running.values(), *self._waiting]
                self._running, self._waiting = {}, deque()
            for job in left:
                _tell(job, Stopped())

    def _step(self) -> None:
        try:
            steps = self.decoder.step()
        except Exception as error:  # of any kind: a model's, an engine's, or a fault of ours
            self._fail(error)
            return
        for step in steps:
            job = self._running[step.row]
            self.counters.count(step, job.drafter)
            fault = job.fault if step.finish_reason else None
            if fault is None:
                _tell(job, step)
            if step.finish_reason:
                del self._running[step.row]
                self.counters.finished("error" if fault else step.finish_reason)
                _tell(job, fault)

    def _ready(self) -> bool:
        """Wait until there is something to do; False once the engine has stopped and nothing is left."""
        with self._changed:
            while not (self._waiting or self._running or self._stopping):
                self._changed.wait()
            return bool(self._waiting or self._running)

    def _admit(self) -> None:
        """Let given-up jobs leave, and waiting ones join while there are places."""
        for index, job in [*self._running.items()]:
            if job.given_up:
                self._end(index, Stopped() if self._stopping else None, "abort")
        before = {*self._running}
        while len(self._running) < self.rows and not (before and self._begun >= self.BUSY):
            with self._changed:
                if not self._waiting:
                    break
                job = self._waiting.popleft()
            self._join(job)
        self._begun = self._begun + 1 if self._running.keys() - before else 0

    def _join(self, job: Job) -> None:
        try:
            job.sequence = self.decoder.join(
                job.ids, job.max_new_tokens, job.seed, job.sampling, job.stops, job.k, job.drafter, job.read_as
            )
        except Exception as error:
            _tell(job, error)
            return
        job.sequence.grammar, job.sequence.top_logprobs = job.grammar, job.top_logprobs
        self._running[job.sequence.index] = job
        self.counters.began(len(job.ids), job.cached)

    def _end(self, index: int, told: Exception | None, reason: str) -> None:
        """A job leaves before its text has ended."""
        job = self._running.pop(index)
        self.decoder.leave(index)
        self.counters.finished(reason)
        _tell(job, told)

    def _fail(self, error: Exception) -> None:
        """A step failed, of which the texts end that are the likely cause."""
        for index in self.decoder.suspects() or [*self._running]:
            self._end(index, error, "error")
        self.decoder.recover()


def _tell(job: Job, what: Step | Exception | None) -> None:
    """Hand over a step or the end. A client whose event loop is gone is no reason to stop."""
    with suppress(RuntimeError):
        job.on_step(what)
