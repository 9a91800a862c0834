"""The speculative decoding loop (Leviathan et al. 2023; Chen et al. 2023), lossless, for several sequences at once.

`Decoder._step` is the algorithm: draft, verify, accept, keep. The rest sees to batches, ends of text and limits.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.likelihoods import Likelihood, likelihoods
from sparsedraft.maths.sampling import Dice, Sampling
from sparsedraft.speculate.loop.drafter import Drafter
from sparsedraft.speculate.loop.grammar import within
from sparsedraft.speculate.loop.sequence import Draft, Step, TokenSequence
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.loop.times import Stopwatch, Times, synchronized
from sparsedraft.speculate.loop.verify import ChainVerifier, Verdict, Verifier
from sparsedraft.speculate.policy.protocol import Outcome, Policy, Trial
from sparsedraft.writers.protocol.backend import Backend


@dataclass
class Generation:
    """A whole answer. `finish_reason` is "eos", "stop", "length" (of max_new_tokens) or "context" (which is full)."""

    tokens: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    finish_reason: str = "length"


@dataclass
class Decoder:
    """Decodes some prompts once, by `decode`: afterwards its caches hold their texts. The random numbers of a sequence
    follow from its seed alone, whichever sequences share its passes.

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

    def _step(self, sequences: list[TokenSequence], new: Sequence[TokenSequence]) -> list[Step]:
        """One step of speculative decoding, for all sequences at once; `new` of them begin with it."""
        watch, spent = Stopwatch(self.clock), Times()

        # 1. Draft. The target adds a token of its own, so a sequence drafts one token less than it has room for.
        k = self.policy.next_k() if self.drafter is not None else 0
        limits = [self._limit(sequence, k) for sequence in sequences]
        drafter = self.drafter if any(limits) else None
        drafts = drafter.propose(sequences, limits) if drafter is not None else [Draft() for _ in sequences]
        drafts = [_held(sequence, draft) for sequence, draft in zip(sequences, drafts, strict=True)]
        spent.draft = watch.lap()

        # 2. Verify. The target reads all drafts in one pass.
        logits = synchronized(self._verifier.read(self.target, sequences, drafts))
        spent.verify = watch.lap()

        # 3. Accept, by the rule that leaves the target's distribution as it is; emit with a token of the target's own.
        verdicts = [
            None if s.waits else self._verifier.accept(s, draft, x, s.sampling or self.sampling)
            for s, draft, x in zip(sequences, drafts, logits, strict=True)
        ]
        steps = [
            self._emit(sequence, draft, verdict, x)
            for sequence, draft, verdict, x in zip(sequences, drafts, verdicts, logits, strict=True)
            if verdict is not None
        ]
        spent.sampling = watch.lap()

        # 4. Keep. The target's cache forgets rejected drafts; a drafter does so when it is asked again.
        by_row = {step.row: step.accepted for step in steps}
        accepted = [
            verdict.accepted[: by_row[s.index]] if verdict is not None else []
            for s, verdict in zip(sequences, verdicts, strict=True)
        ]
        self._verifier.keep(self.target, sequences, drafts, accepted)
        spent.rollback = watch.lap()

        # a sequence that was not to draft says nothing of the drafter
        drafting = {sequence.index for sequence, limit in zip(sequences, limits, strict=True) if limit > 0}
        may = [step for step in steps if step.row in drafting] or steps
        asked = [step.row for step in may if drafter is not None and step.match is None]
        going = [sequence for sequence in sequences if not sequence.waits]
        self.policy.observe(self._outcome(going, steps, watch.total, spent.draft, new=new, asked=asked, may=may))
        spent.rest = watch.lap()
        self.times.add(spent)
        return steps

    def _limit(self, sequence: TokenSequence, k: int) -> int:
        """Tokens to draft for a sequence, where the policy says `k`."""
        return min(k if sequence.k is None else sequence.k, sequence.room - 1)

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
            new_sequence(i, ids, room_after(self.target, ids, max_new_tokens), max_new_tokens, self.dice(seed))
            for i, (ids, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        self._started = True
        self._begin(sequences, sequences)
        sequences, new = self._select([s for s in sequences if s.room > 0], sequences), sequences
        while sequences:
            with self.around():
                steps = self._step(sequences, new)
            new = []
            yield from steps
            sequences = self._select([s for s in sequences if not s.finish_reason], sequences)

    def _begin(self, new: Sequence[TokenSequence], sequences: Sequence[TokenSequence]) -> None:
        """Tell the policy of the texts that begin, the `new` ones of `sequences`."""
        held = dict(zip((sequence.index for sequence in sequences), self.target.lengths, strict=True))
        for sequence in new:
            sequence.first = len(sequence.tokens) - held[sequence.index]
            self._unread.setdefault(sequence.index, sequence.prompt if self._drafter_reads else 0)
        unread = max((self._unread[s.index] for s in new), default=0)
        self.policy.begin(unread, max((s.room for s in new), default=0))

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
            read=max((sequence.first for sequence in new), default=0),
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


def new_sequence(index: int, prompt_ids: list[int], room: int, max_new_tokens: int, dice: Dice) -> TokenSequence:
    """The sequence of a prompt after which `room` tokens can be written, of the `max_new_tokens` that are asked for."""
    limit = "length" if room == max_new_tokens else "context"
    return TokenSequence(index, list(prompt_ids), len(prompt_ids), len(prompt_ids) + room, dice, limit)


def _held(sequence: TokenSequence, draft: Draft) -> Draft:
    """The draft, as far as the sequence's grammar allows it. Drafts that were drawn follow it: see ModelDrafter."""
    if sequence.grammar is None or draft.q is not None:
        return draft
    return replace(draft, tokens=within(sequence.grammar, sequence.written, draft.tokens))


def room_after(target: Backend, prompt_ids: Sequence[int], max_new_tokens: int) -> int:
    """Tokens that can be written after the prompt. UserError for one that is empty or fills the target's context."""
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
