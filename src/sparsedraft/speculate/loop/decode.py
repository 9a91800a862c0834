"""The speculative decoding loop (Leviathan et al. 2023; Chen et al. 2023), lossless, for several sequences at once.

`Decoder._step` is the algorithm: draft, verify, accept, keep. The rest sees to batches, ends of text and limits.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import cast

from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.likelihoods import Likelihood, likelihoods
from sparsedraft.maths.sampling import Dice, Sampling
from sparsedraft.speculate.loop.drafter import Drafter, OpenDrafter
from sparsedraft.speculate.loop.grammar import within
from sparsedraft.speculate.loop.sequence import Draft, Step, TokenSequence
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.loop.times import Stopwatch, Times, synchronized
from sparsedraft.speculate.loop.verify import ChainVerifier, Verdict, Verifier
from sparsedraft.speculate.policy.protocol import Outcome, Policy, Trial
from sparsedraft.writers.protocol.backend import Backend, OpenBackend


@dataclass
class Generation:
    """A whole answer. `finish_reason` is "eos", "stop", "length" (of max_new_tokens) or "context" (which is full)."""

    tokens: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    finish_reason: str = "length"


@dataclass
class Decoder:
    """Decodes some prompts once, by `decode`: afterwards its caches hold their texts. Or texts `join` one by one, each
    with its own way to draw, `step` adds to all of them, and each leaves as it ends; backends and drafter are to admit
    them then. The random numbers of a sequence follow from its seed alone, whichever sequences share its passes.

    `drafter` None is plain decoding. `eos_ids` and `stops` end a sequence. `clock` returns seconds, `dice` makes the
    random numbers of a seed. Each step runs inside a context that `around` makes.
    """

    target: Backend
    drafter: Drafter | None
    policy: Policy
    sampling: Sampling
    eos_ids: frozenset[int] = frozenset()
    stops: Stops | None = None
    clock: Callable[[], float] = time.perf_counter
    dice: Callable[[int], Dice] = Dice
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    times: Times = field(default_factory=Times)
    _started: bool = field(default=False, init=False)
    # by the sequence's index: tokens that the drafter has not read, because it was not asked; whether it ever was
    _unread: dict[int, int] = field(default_factory=dict, init=False)
    _drafter_started: set[int] = field(default_factory=set, init=False)
    _open: list[TokenSequence] = field(default_factory=list, init=False)  # those that joined and have not ended
    _joined: int = field(default=0, init=False)
    _new: list[TokenSequence] = field(default_factory=list, init=False)  # of those, the ones without a step yet

    def _step(self, sequences: list[TokenSequence], new: Sequence[TokenSequence]) -> list[Step]:
        """One step of speculative decoding, for all sequences at once; `new` of them begin with it."""
        watch, spent = Stopwatch(self.clock), Times()

        # 1. Draft. The target adds a token of its own, so a sequence drafts one token less than it has room for.
        k = self.policy.next_k() if self.drafter is not None else 0
        limits = [min(k if sequence.k is None else sequence.k, sequence.room - 1) for sequence in sequences]
        drafter = self.drafter if any(limits) else None
        drafts = drafter.propose(sequences, limits) if drafter is not None else [Draft() for _ in sequences]
        drafts = [_held(sequence, draft) for sequence, draft in zip(sequences, drafts, strict=True)]
        spent.draft = watch.lap()

        # 2. Verify. The target reads all drafts in one pass.
        logits = synchronized(self._verifier.read(self.target, sequences, drafts))
        spent.verify = watch.lap()

        # 3. Accept, by the rule that leaves the target's distribution as it is; emit with a token of the target's own.
        verdicts = [
            self._verifier.accept(sequence, draft, x, sequence.sampling or self.sampling)
            for sequence, draft, x in zip(sequences, drafts, logits, strict=True)
        ]
        steps = [self._emit(*parts) for parts in zip(sequences, drafts, verdicts, logits, strict=True)]
        spent.sampling = watch.lap()

        # 4. Keep. The target's cache forgets rejected drafts; a drafter does so when it is asked again.
        accepted = [verdict.accepted[: step.accepted] for verdict, step in zip(verdicts, steps, strict=True)]
        self._verifier.keep(self.target, sequences, drafts, accepted)
        spent.rollback = watch.lap()

        # a sequence that was not to draft says nothing of the drafter
        may = [step for step, limit in zip(steps, limits, strict=True) if limit > 0] or steps
        asked = [step.row for step in may if drafter is not None and step.match is None]
        self.policy.observe(self._outcome(sequences, steps, watch.total, spent.draft, new=new, asked=asked, may=may))
        spent.rest = watch.lap()
        self.times.add(spent)
        return steps

    @property
    def _drafter_reads(self) -> bool:
        """Whether the drafter reads the text by a model, which takes time."""
        return self.drafter is not None and getattr(self.drafter, "reads", True)

    @property
    def _verifier(self) -> Verifier:
        return ChainVerifier() if self.drafter is None else self.drafter.verifier

    def decode(self, prompts: Sequence[list[int]], max_new_tokens: int, seeds: Sequence[int]) -> Iterator[Step]:
        """Continue each prompt with up to `max_new_tokens` tokens, and yield the steps of all as they are done.

        A drafter whose context is full drafts no more. Raises UserError for a prompt that is empty or fills the
        target's context, FloatingPointError for NaN logits, ValueError for a second call or for another number of
        prompts than the target has rows.
        """
        if self._started:
            raise ValueError("this Decoder has decoded before, and its caches hold that: make another one.")
        if len(prompts) != len(self.target.lengths):
            raise ValueError(f"{len(prompts)} prompts for {len(self.target.lengths)} rows: make a Decoder of as many.")
        sequences = [
            _sequence(i, ids, _room(self.target, ids, max_new_tokens), max_new_tokens, self.dice(seed))
            for i, (ids, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        self._started = True
        self._begin(sequences)
        sequences, new = self._select([s for s in sequences if s.room > 0], sequences), sequences
        while sequences:
            with self.around():
                steps = self._step(sequences, new)
            new = []
            yield from steps
            sequences = self._select([s for s in sequences if not s.finish_reason], sequences)

    def join(
        self,
        ids: Sequence[int],
        max_new_tokens: int,
        seed: int,
        sampling: Sampling | None = None,
        stops: Stops | None = None,
        k: int | None = None,
        top_logprobs: int | None = None,
    ) -> TokenSequence:
        """Continue the prompt `ids`, beside the texts that are under way.

        Its steps have the index of what is returned, which is not to be changed; only a grammar may be given to it
        before its first step. What is asked for is as in
        TokenSequence: with a constant `k` the text follows from the seed, whatever the policy learns and whatever runs
        beside it.

        UserError as `decode`; ValueError where all rows are taken.
        """
        room = _room(self.target, ids, max_new_tokens)
        sequence = _sequence(self._joined, [*ids], room, max_new_tokens, self.dice(seed))
        sequence.sampling, sequence.stops, sequence.k = sampling, stops, k
        sequence.top_logprobs = top_logprobs
        sequence.cached = cast(OpenBackend, self.target).admit(ids)
        if self.drafter is not None:
            cast(OpenDrafter, self.drafter).admit(sequence)
        self._started, self._joined = True, self._joined + 1
        self._open.append(sequence)
        self._new.append(sequence)
        return sequence

    def step(self) -> list[Step]:
        """One step of each text that has joined and not ended, in the order in which they joined; [] without any."""
        if not self._open:
            return []
        new, self._new = self._new, []
        if new:
            self._begin(new)
        with self.around():
            steps = self._step(self._open, new)
        self._keep_open([sequence for sequence in self._open if not sequence.finish_reason])
        return steps

    def recover(self) -> None:
        """After a step that raised: let the target forget what it read in it, so that the texts can go on."""
        self.target.rollback([len(sequence.tokens) - 1 for sequence in self._open])

    def leave(self, index: int) -> None:
        """Give up the text of this index, if it is under way."""
        self._new = [sequence for sequence in self._new if sequence.index != index]
        self._keep_open([sequence for sequence in self._open if sequence.index != index])

    def _keep_open(self, going: list[TokenSequence]) -> None:
        """Only these go on; the rows of the others are free."""
        if len(going) == len(self._open):
            return
        if going:
            self._select(going, self._open)
        else:
            self.target.select([])
            if self.drafter is not None:
                self.drafter.select([])
        left = {sequence.index for sequence in self._open} - {sequence.index for sequence in going}
        self._unread = {index: count for index, count in self._unread.items() if index not in left}
        self._drafter_started -= left
        for index in left if self.drafter is not None else ():
            cast(OpenDrafter, self.drafter).leave(index)
        self._open = going

    def _begin(self, new: Sequence[TokenSequence]) -> None:
        """Tell the policy of the texts that begin."""
        unread = {s.index: s.prompt if self._drafter_reads else 0 for s in new}
        self._unread |= unread
        self.policy.begin(max(unread.values(), default=0), max((s.room for s in new), default=0))

    def _select(self, going: list[TokenSequence], sequences: list[TokenSequence]) -> list[TokenSequence]:
        """`going`, the only ones of `sequences` that the caches hold from now on."""
        if 0 < len(going) < len(sequences):
            indices = {sequence.index for sequence in going}
            rows = [row for row, sequence in enumerate(sequences) if sequence.index in indices]
            self.target.select(rows)
            if self.drafter is not None:
                self.drafter.select(rows)
        return going

    def _emit(self, sequence: TokenSequence, draft: Draft, verdict: Verdict, logits: Tensor) -> Step:
        """Append to `sequence` what was accepted and the target's token, up to the sequence's end."""
        emitted, reason = self._cut(sequence, [*(draft.tokens[i] for i in verdict.accepted), verdict.token])
        sequence.tokens += emitted
        sequence.finish_reason = reason or ("" if sequence.room > 0 else sequence.limit)
        accepted = min(len(verdict.accepted), len(emitted))
        tested = (verdict.tested, verdict.kept, verdict.expected, verdict.share)
        told = (sequence.finish_reason, draft.match, self._likelihoods(sequence, verdict, emitted, logits))
        return Step(draft.tokens, accepted, emitted, sequence.index, *tested, *told)

    @staticmethod
    def _likelihoods(
        sequence: TokenSequence, verdict: Verdict, emitted: list[int], logits: Tensor
    ) -> tuple[Likelihood, ...]:
        """Those of the emitted tokens, where they are asked for: each follows the accepted draft before it."""
        if sequence.top_logprobs is None:
            return ()
        rows = [0, *(place + 1 for place in verdict.accepted)][: len(emitted)]
        return tuple(likelihoods(logits[rows], emitted, sequence.top_logprobs))

    def _cut(self, sequence: TokenSequence, emitted: list[int]) -> tuple[list[int], str]:
        """(`emitted` up to the token that ends the text, "eos" or "stop"); all of it and "" where none does."""
        end = next((i for i, token in enumerate(emitted) if token in self.eos_ids), None)
        reason = "" if end is None else "eos"
        stops = sequence.stops or self.stops
        if stops is not None:
            tokens = [*sequence.tokens, *emitted]
            stop = stops.first(tokens, len(tokens) - sequence.prompt, len(emitted))
            if stop is not None and (end is None or stop < end):
                end, reason = stop, "stop"
        return (emitted if end is None else emitted[: end + 1]), reason

    def _outcome(
        self,
        sequences: list[TokenSequence],
        steps: list[Step],
        seconds: float,
        draft_seconds: float,
        *,
        new: Sequence[TokenSequence],
        asked: list[int],
        may: Sequence[Step],
    ) -> Outcome:
        """What the policy learns of a step; keeps count of what the drafter has not read.

        `asked`: the indices of the sequences for which it was asked; `may`: the steps that might draft.
        """
        late = max((self._unread[row] for row in asked), default=0)
        prompt = bool(new) or not self._drafter_started.issuperset(asked)  # the drafter may read its prompt later
        self._drafter_started.update(asked)
        for step in steps:
            read = step.row in asked or not self._drafter_reads
            self._unread[step.row] = 0 if read else self._unread[step.row] + len(step.emitted)
        n, going = len(steps), [sequence for sequence in sequences if not sequence.finish_reason]
        return Outcome(
            max(len(step.drafted) for step in steps),
            sum(step.accepted for step in may) / len(may),
            sum(len(step.emitted) for step in steps) / n,
            draft_seconds,
            seconds,
            bool(asked),
            begins=bool(new),
            prompt=prompt,
            late=late,
            behind=max((self._unread[sequence.index] for sequence in going), default=0),
            rows=n,
            read=max((sequence.prompt for sequence in new), default=0),
            room=max((sequence.room for sequence in going), default=0),
            at_once=bool(asked) and getattr(self.drafter, "at_once", False),
            full=any(sequence.finish_reason in ("length", "context") for sequence in sequences),
            trials=tuple(Trial(step.row, step.match, len(step.drafted), step.accepted) for step in steps),
        )


def generate(decoder: Decoder, prompt_ids: list[int], max_new_tokens: int, seed: int = 0) -> Generation:
    """All of `decode` on one prompt at once."""
    return generate_all(decoder, [prompt_ids], max_new_tokens, [seed])[0]


def generate_all(
    decoder: Decoder, prompts: Sequence[list[int]], max_new_tokens: int, seeds: Sequence[int]
) -> list[Generation]:
    """All of `decode` at once: the answers in the order of the prompts."""
    answers = [Generation() for _ in prompts]
    for step in decoder.decode(prompts, max_new_tokens, seeds):
        answers[step.row].steps.append(step)
        answers[step.row].tokens += step.emitted
        answers[step.row].finish_reason = step.finish_reason
    return answers


def _sequence(index: int, prompt_ids: list[int], room: int, max_new_tokens: int, dice: Dice) -> TokenSequence:
    limit = "length" if room == max_new_tokens else "context"
    return TokenSequence(index, list(prompt_ids), len(prompt_ids), len(prompt_ids) + room, dice, limit)


def _held(sequence: TokenSequence, draft: Draft) -> Draft:
    """The draft, as far as the sequence's grammar allows it. Drafts that were drawn follow it: see ModelDrafter."""
    if sequence.grammar is None or draft.q is not None:
        return draft
    return replace(draft, tokens=within(sequence.grammar, sequence.written, draft.tokens))


def _room(target: Backend, prompt_ids: Sequence[int], max_new_tokens: int) -> int:
    """Tokens that can be written after the prompt."""
    if not prompt_ids:
        raise UserError("the prompt is empty: give at least one token.")
    if target.max_length is None:
        return max_new_tokens
    if len(prompt_ids) >= target.max_length:
        raise UserError(
            f"the prompt has {len(prompt_ids)} tokens, which fill the target's context of {target.max_length}: "
            "shorten it."
        )
    return min(max_new_tokens, target.max_length - len(prompt_ids))
