"""The speculative decoding loop (Leviathan et al. 2023; Chen et al. 2023), over rows of sequences, lossless.

Each step: the drafter proposes, the target reads the proposals in one pass, and what it accepts is emitted with one
token of its own. Both caches are then rolled back to what was emitted.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Dice, Sampling, likeliest, penalised, probabilities, sound
from sparsedraft.speculate.loop.accept import accept_greedy, accept_sampled, accept_tree_greedy, accept_tree_sampled
from sparsedraft.speculate.loop.drafter import Drafter
from sparsedraft.speculate.loop.sequence import Draft, Step, TokenSequence
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.policy.protocol import Outcome, Policy
from sparsedraft.writers.protocol.backend import Backend, TreeBackend
from sparsedraft.writers.transformers import masks


@dataclass
class Times:
    """Seconds of each part of the loop: `verify` is the target's forward, `rest` is everything else in Python."""

    draft: float = 0.0
    verify: float = 0.0
    rollback: float = 0.0
    sampling: float = 0.0
    rest: float = 0.0

    @property
    def total(self) -> float:
        return self.draft + self.verify + self.rollback + self.sampling + self.rest


@dataclass
class Generation:
    """A whole answer; `finish_reason` is "eos", "stop", "length" (max_new_tokens) or "context" (the target's is
    full)."""

    tokens: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    finish_reason: str = "length"


@dataclass
class Decoder:
    """How to decode, once: its caches then hold what was read. A row's draws follow from its seed, whichever rows it is
    batched with.

    `drafter` None is plain decoding. `eos_ids` and `stops` end a sequence. `clock` gives seconds, `dice` the
    chances of a seed. Every step is taken inside of a context that `around` makes.
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
    _begun: bool = field(default=False, init=False)
    _behind: int = field(default=0, init=False)  # tokens that the drafter has not read, for it was not asked
    _drafter_has_read: bool = field(default=False, init=False)

    def decode(self, prompts: Sequence[list[int]], max_new_tokens: int, seeds: Sequence[int]) -> Iterator[Step]:
        """Continue each prompt with up to `max_new_tokens`, yielding the steps of all rows as they are done.

        A step with r tokens to go drafts at most r - 1, since the target adds one of its own. A drafter whose context
        is full drafts no more. Raises UserError for a prompt that is empty or fills the target's context,
        FloatingPointError for NaN logits, ValueError for a second call or another number of prompts than of rows.
        """
        if self._begun:
            raise ValueError("this Decoder has decoded before, and its caches hold that: make another one.")
        if len(prompts) != len(self.target.lengths):
            raise ValueError(f"{len(prompts)} prompts for {len(self.target.lengths)} rows: make a Decoder of as many.")
        rows = [
            TokenSequence(i, list(ids), len(ids), len(ids) + _room(self.target, ids, max_new_tokens), self.dice(seed))
            for i, (ids, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        self._begun = True
        self._behind = max((row.prompt for row in rows), default=0)
        self._drop([row for row in rows if row.room > 0], rows)
        rows, first = [row for row in rows if row.room > 0], True
        while rows:
            with self.around():
                steps = self._step(rows, first)
            first = False
            yield from steps
            going = [row for row in rows if not row.finish_reason]
            self._drop(going, rows)
            rows = going

    def finish_reason(self, tokens: Sequence[int], max_new_tokens: int, written: int) -> str:
        """Why a sequence whose last `written` tokens are the answer ended."""
        if written and tokens[-1] in self.eos_ids:
            return "eos"
        if self.stops is not None and written and self.stops.first(tokens, written, 1) is not None:
            return "stop"
        return "length" if written >= max_new_tokens else "context"

    def _drop(self, going: list[TokenSequence], rows: list[TokenSequence]) -> None:
        if 0 < len(going) < len(rows):
            stay = {row.index for row in going}
            places = [b for b, row in enumerate(rows) if row.index in stay]
            self.target.select(places)
            if self.drafter is not None:
                self.drafter.select(places)

    def _step(self, rows: list[TokenSequence], first: bool) -> list[Step]:
        """One pass of the target over every row, and what came of it."""
        start = self.clock()
        most = self.policy.wanted() if self.drafter is not None else 0
        wanted = [min(most, row.room - 1) for row in rows]
        prompt, asked = first, self.drafter is not None and any(n > 0 for n in wanted)
        if self.drafter is not None and asked:
            drafts = self.drafter.propose(rows, wanted)
            prompt |= not self._drafter_has_read  # its own may come later than the target's
            self._drafter_has_read = True
        else:
            drafts = [Draft() for _ in rows]
        drafted = self.clock()
        logits = finished(self._verify(rows, drafts))
        verified = self.clock()
        steps, kept = [], []
        for row, draft, found in zip(rows, drafts, logits, strict=True):
            step, nodes = self._accept(row, draft, found)
            steps.append(step)
            kept.append(nodes)
        accepted = self.clock()
        self._keep(rows, drafts, kept)
        end = self.clock()
        self.times.draft += drafted - start
        self.times.verify += verified - drafted
        self.times.sampling += accepted - verified
        self.times.rollback += end - accepted
        n = len(rows)
        late = self._behind if asked else 0
        self._behind = 0 if asked else self._behind + max(len(step.emitted) for step in steps)
        goes_on = any(not row.finish_reason for row in rows)
        self.policy.observe(
            Outcome(
                max(len(d.tokens) for d in drafts),
                sum(step.accepted for step in steps) / n,
                sum(len(step.emitted) for step in steps) / n,
                drafted - start,
                end - start,
                asked,
                begins=first,
                prompt=prompt,
                late=late,
                behind=self._behind if self._drafter_has_read and goes_on else 0,
                rows=n,
            )
        )
        self.times.rest += self.clock() - end
        return steps

    @property
    def _tree_target(self) -> TreeBackend:
        """The target where trees are drafted: one that reads them was asked for (see Pair.check_tree)."""
        return cast(TreeBackend, self.target)

    def _verify(self, rows: list[TokenSequence], drafts: list[Draft]) -> list[Tensor]:
        """The target's logits after each row's tokens and after each of its drafts; what it has not read, it reads."""
        lengths = self.target.lengths
        if drafts[0].parents:
            unread = rows[0].tokens[lengths[0] :]
            head = self.target.forward([unread], [1])[0] if lengths[0] < len(rows[0].tokens) - 1 else None
            if head is None:  # the last token is the root of the tree
                parents = [-1, *(parent + 1 for parent in drafts[0].parents)]
                return [self._tree_target.forward_tree([*unread, *drafts[0].tokens], parents)]
            return [torch.cat([head, self._tree_target.forward_tree(drafts[0].tokens, drafts[0].parents)])]
        ids = [row.tokens[n:] + draft.tokens for row, n, draft in zip(rows, lengths, drafts, strict=True)]
        return self.target.forward(ids, [len(draft.tokens) + 1 for draft in drafts])

    def _accept(self, row: TokenSequence, draft: Draft, logits: Tensor) -> tuple[Step, list[int]]:
        """The step of one row, which gets what it emits; and the drafts that were accepted, by number."""
        depths = masks.depths(draft.parents) if draft.parents else range(len(draft.tokens))
        logits = sound(logits, "target", [len(row.tokens) + i for i in (0, *(depth + 1 for depth in depths))])
        tested = (0, 0, 0.0)
        if draft.parents:
            nodes, token = self._accept_tree(row, draft, logits)
        else:
            accepted, token, tested = self._accept_chain(row, draft, logits)
            nodes = list(range(accepted))
        emitted = [*(draft.tokens[node] for node in nodes), token]
        stop = next((i for i, t in enumerate(emitted) if t in self.eos_ids), None)
        reason = "" if stop is None else "eos"
        if self.stops is not None:
            tokens = [*row.tokens, *emitted]
            found = self.stops.first(tokens, len(tokens) - row.prompt, len(emitted))
            if found is not None and (stop is None or found < stop):
                stop, reason = found, "stop"
        if stop is not None:
            emitted = emitted[: stop + 1]
        row.tokens += emitted
        row.finish_reason = reason or ("" if row.room > 0 else "length")
        nodes = nodes[: len(emitted)]
        return Step(draft.tokens, len(nodes), emitted, row.index, *tested), nodes

    def _accept_chain(
        self, row: TokenSequence, draft: Draft, logits: Tensor
    ) -> tuple[int, int, tuple[int, int, float]]:
        """(accepted, next token, what `Step` says of sampled drafts)."""
        logits = penalised(logits, self.sampling, row.tokens, draft.tokens)
        drafted = torch.tensor(draft.tokens)
        if self.sampling.greedy:
            choices = likeliest(logits)
            accepted = accept_greedy(choices, drafted)
            return accepted, int(choices[accepted]), (0, 0, 0.0)
        p = probabilities(logits, self.sampling)
        q = torch.stack(draft.q) if draft.q else None
        accepted, token = accept_sampled(p, q, drafted, row.dice)
        if q is None:
            return accepted, token, (0, 0, 0.0)
        tested = min(accepted + 1, len(drafted))
        return accepted, token, (tested, accepted, float(torch.minimum(p[:tested], q[:tested]).sum()))

    def _accept_tree(self, row: TokenSequence, draft: Draft, logits: Tensor) -> tuple[list[int], int]:
        if self.sampling.repetition_penalty != 1:
            logits = torch.cat(
                [penalised(logits[:1], self.sampling, row.tokens)]
                + [
                    penalised(logits[i + 1 : i + 2], self.sampling, [*row.tokens, *branch(draft, i)])
                    for i in range(len(draft.tokens))
                ]
            )
        if self.sampling.greedy:
            return accept_tree_greedy(likeliest(logits), draft.tokens, draft.parents)
        p = probabilities(logits, self.sampling)
        assert draft.q is not None, "a tree that is sampled from comes with its distributions"
        return accept_tree_sampled(p, draft.q, draft.tokens, draft.parents, row.dice)

    def _keep(self, rows: list[TokenSequence], drafts: list[Draft], kept: list[list[int]]) -> None:
        """Roll the target's cache back to what was emitted, its last token not read yet; drafters do it themselves."""
        if drafts[0].parents:
            before = self.target.lengths[0] - len(drafts[0].tokens)
            self._tree_target.keep(before, kept[0])
        self.target.rollback([len(row.tokens) - 1 for row in rows])


def finished(logits: list[Tensor]) -> list[Tensor]:
    """`logits` when they are there: an accelerator has but been asked, and its work would count as whatever is next."""
    if logits[0].device.type != "cpu":
        torch.accelerator.synchronize(logits[0].device)
    return logits


def branch(draft: Draft, node: int) -> list[int]:
    """The tokens of a tree from its root down to `node`."""
    found: list[int] = []
    while node >= 0:
        found.append(draft.tokens[node])
        node = draft.parents[node]
    return found[::-1]


def generate(decoder: Decoder, prompt_ids: list[int], max_new_tokens: int, seed: int = 0) -> Generation:
    """All of `decode` on one prompt at once."""
    return generate_all(decoder, [prompt_ids], max_new_tokens, [seed])[0]


def generate_all(
    decoder: Decoder, prompts: Sequence[list[int]], max_new_tokens: int, seeds: Sequence[int]
) -> list[Generation]:
    """All of `decode` at once: the answers in the order of the prompts."""
    made = [Generation() for _ in prompts]
    for step in decoder.decode(prompts, max_new_tokens, seeds):
        made[step.row].steps.append(step)
        made[step.row].tokens += step.emitted
    for ids, answer in zip(prompts, made, strict=True):
        tokens = [*ids, *answer.tokens]
        answer.finish_reason = decoder.finish_reason(tokens, max_new_tokens, len(answer.tokens))
    return made


def _room(target: Backend, prompt_ids: Sequence[int], max_new_tokens: int) -> int:
    """Tokens that can still be written."""
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
