"""Drafts from a model, token by token."""

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from sparsedraft.maths.sampling import Sampling, likeliest, penalised, probabilities, sound
from sparsedraft.speculate.drafters.vocabulary import VocabularyMap
from sparsedraft.speculate.loop.grammar import Grammar, permitted
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.speculate.loop.verify import ChainVerifier, Verifier
from sparsedraft.speculate.policy.protocol import always
from sparsedraft.writers.prefix import shared
from sparsedraft.writers.protocol.backend import Backend, OpenBackend


class Readers(Protocol):
    """Holds something of each text that comes and goes."""

    def admit(self, sequence: TokenSequence) -> None:
        """The sequence begins."""
        ...

    def leave(self, index: int) -> None:
        """The sequence of this index will not be seen again."""
        ...


class ModelDrafter:
    """A model that drafts token by token, for all sequences at once.

    `sampling` makes q of the drafter's logits; its temperature may be another than the target's. Verification takes
    this very q, so that the target's distribution stays. A sequence that has its own way to draw is drafted so, at
    `factor` times its temperature.
    `read` gives the ids of a sequence as the drafter reads them (default: the target's). `vocabulary` maps the
    drafter's logits to the target's ids. `confident` decides whether a token is worth its time, before it is drawn, so
    that it cannot bias the draw: it gets the product of the top probabilities up to that place. `certain`: take the
    likeliest token, without a q. A backend whose head follows the text is told the tokens of `heard`: the sequence's,
    or those that it reads.
    """

    verifier: Verifier = ChainVerifier()
    readers: "Readers | None" = None  # what holds something of each text that comes and goes, for `read`

    def __init__(
        self,
        backend: Backend,
        sampling: Sampling,
        *,
        read: Callable[[TokenSequence], list[int]] = lambda sequence: sequence.tokens,
        vocabulary: VocabularyMap | None = None,
        confident: Callable[[float], bool] = always,
        certain: bool = False,
        heard: Callable[[TokenSequence], Sequence[int]] | None = None,
        factor: float = 1.0,
    ) -> None:
        self.backend, self.sampling, self.read, self.vocabulary = backend, sampling, read, vocabulary
        self.confident, self.certain, self.factor = confident, certain, factor
        plain = vocabulary is None and confident is always
        self._draft_natively = getattr(backend, "draft", None) if plain else None  # whole drafts, without logits
        self._drafter_ids = vocabulary.inverse() if vocabulary else {}  # by the target's ids
        self._cached: list[list[int]] = [[] for _ in backend.lengths]  # what each row of the cache holds
        self._know, self.heard = getattr(backend, "know", None), heard or read
        self._told: list[list[int]] = [[] for _ in backend.lengths]  # the tokens of each row that it was told

    def select(self, rows: Sequence[int]) -> None:
        self.backend.select(rows)
        self._cached, self._told = [self._cached[b] for b in rows], [self._told[b] for b in rows]

    def context(self, sequence: TokenSequence) -> list[int]:
        """What is read of a sequence before anything is drafted."""
        return self.read(sequence)

    def admit(self, sequence: TokenSequence) -> None:
        if self.readers is not None:
            self.readers.admit(sequence)
        context = self.context(sequence)
        self._cached.append(context[: cast(OpenBackend, self.backend).admit(context)])
        self._told.append([])

    def leave(self, index: int) -> None:
        if self.readers is not None:
            self.readers.leave(index)

    def read_on(self, sequence: TokenSequence, row: int, most: int) -> int:
        context = self.context(sequence)
        if self._limit(len(context), 1) <= 0:  # there is no room for a draft behind all of it: nothing is read
            return 0
        active = [b == row for b in range(len(self._cached))]
        unread = self._unread([context if on else [] for on in active], active)
        ids = unread[row][: min(most, len(unread[row]) - 1)]  # the last one is read for its logits
        if ids:
            self.backend.forward([ids if on else [] for on in active], [0] * len(active))
            self._cached[row] += ids
        return len(unread[row]) - len(ids)

    def sampling_of(self, sequence: TokenSequence) -> Sampling:
        """How q is made for this sequence."""
        return self.sampling if sequence.sampling is None else sequence.sampling.tempered(self.factor)

    def grammar_of(self, sequence: TokenSequence) -> Grammar | None:
        """What its drafts are held to as they are made."""
        return sequence.grammar

    def is_certain(self, sequence: TokenSequence) -> bool:
        """Whether its drafts are the likeliest tokens, without a q."""
        return self.certain or self.sampling_of(sequence).greedy

    def propose(self, sequences: Sequence[TokenSequence], limits: Sequence[int]) -> list[Draft]:
        contexts = [self.read(s) if limit > 0 else [] for s, limit in zip(sequences, limits, strict=True)]
        limits = [self._limit(len(context), limit) for context, limit in zip(contexts, limits, strict=True)]
        self._tell(sequences, limits)
        unread = self._unread(contexts, [limit > 0 for limit in limits])
        drafts = self._whole_drafts(sequences, limits, unread)
        q: list[list[Tensor]] = [[] for _ in sequences]
        reach = [1.0] * len(sequences)
        while any(unread):
            logits = self.backend.forward(unread, [int(bool(ids)) for ids in unread])
            for b, ids in enumerate(unread):
                self._cached[b] += ids
                unread[b] = []
                if not ids:
                    continue
                token, reach[b] = self._next(sequences[b], drafts[b], logits[b], q[b], reach[b])
                if token is None:
                    continue
                drafts[b].append(token)
                if len(drafts[b]) < limits[b]:
                    unread[b] = [self._drafter_id(token)]
        return [
            Draft(tokens, None if self.is_certain(sequence) else of_draft)
            for sequence, tokens, of_draft in zip(sequences, drafts, q, strict=True)
        ]

    def _whole_drafts(
        self, sequences: Sequence[TokenSequence], limits: Sequence[int], unread: list[list[int]]
    ) -> list[list[int]]:
        """The drafts of those sequences that the engine drafts for without us; nothing of them is unread then."""
        plain = [limit > 0 and self._plain(s) for s, limit in zip(sequences, limits, strict=True)]
        if self._draft_natively is None or not any(plain):
            return [[] for _ in sequences]
        counts = [limit if on else 0 for limit, on in zip(limits, plain, strict=True)]
        drafts: list[list[int]] = self._draft_natively(counts, unread)
        for b in (b for b, on in enumerate(plain) if on):
            self._cached[b] += [*unread[b], *drafts[b][:-1]]
            unread[b] = []
        return drafts

    def _plain(self, sequence: TokenSequence) -> bool:
        """Whether its logits are taken as they are, so that the backend may draft without showing them."""
        free = self.grammar_of(sequence) is None
        return free and self.is_certain(sequence) and self.sampling_of(sequence).repetition_penalty == 1

    def distributions(self, sequence: TokenSequence, drafted: Sequence[int]) -> Tensor:
        """q [n + 1, V] after `sequence` and after each of n drafts: what `propose` draws from where it draws these.

        The drafter has one sequence, and its context has room for the drafts.
        """
        if self._know is not None:
            self.backend.forget()  # type: ignore[attr-defined]
            self._know(0, self.heard(sequence))
        (unread,) = self._unread([self.read(sequence)], [True])
        unread += [self._drafter_id(token) for token in drafted]
        logits = self.backend.forward([unread], [len(drafted) + 1])[0]
        self._cached[0] += unread
        logits = sound(logits, "drafter", range(len(sequence.tokens), len(sequence.tokens) + len(logits)))
        logits = logits if self.vocabulary is None else self.vocabulary.logits(logits)
        return probabilities(penalised(logits, self.sampling, sequence.tokens, drafted), self.sampling)

    def _tell(self, sequences: Sequence[TokenSequence], limits: Sequence[int]) -> None:
        """Tell a head that follows the text what is new."""
        if self._know is None:
            return
        for row, (sequence, limit) in enumerate(zip(sequences, limits, strict=True)):
            if limit > 0:
                text = [*self.heard(sequence)]
                self._know(row, text[shared(self._told[row], text) :])
                self._told[row] = text

    def _limit(self, context: int, limit: int) -> int:
        """The most tokens that can be drafted after `context` tokens; 0 where there are none to go on from."""
        room = self.backend.max_length
        return (limit if room is None else min(limit, room - context)) if context else 0

    def _drafter_id(self, token: int) -> int:
        return self._drafter_ids[token] if self._drafter_ids else token

    def _unread(self, contexts: list[list[int]], active: list[bool]) -> list[list[int]]:
        """The ids that each row has yet to read; its cache is rolled back to what it shares with its context."""
        common = [
            min(shared(cached, context), len(context) - 1) if on else len(cached)
            for cached, context, on in zip(self._cached, contexts, active, strict=True)
        ]
        self.backend.rollback(common)
        self._cached = [cached[:n] for cached, n in zip(self._cached, common, strict=True)]
        return [context[n:] if on else [] for context, n, on in zip(contexts, common, active, strict=True)]

    def _next(
        self, sequence: TokenSequence, drafted: list[int], logits: Tensor, q: list[Tensor], reach: float
    ) -> tuple[int | None, float]:
        """(the next draft after `drafted` or None to stop, `reach` times its top probability), from logits [1, V].

        The distribution that it was drawn from is appended to `q`.
        """
        logits = sound(logits, "drafter", [len(sequence.tokens) + len(drafted)])
        if self.vocabulary is not None:
            logits = self.vocabulary.logits(logits)
        sampling = self.sampling_of(sequence)
        logits = penalised(logits, sampling, [*sequence.tokens, *drafted])[0]
        if (grammar := self.grammar_of(sequence)) is not None:
            logits = permitted(logits[None], grammar, [*sequence.written, *drafted])[0]
            if not logits.amax() > -torch.inf:  # the drafter has none of the tokens that may come
                return None, reach
        if self.is_certain(sequence):
            if self.confident is not always:
                reach *= float(logits.float().softmax(-1).max())
            return (int(likeliest(logits)) if self.confident(reach) else None), reach
        distribution = probabilities(logits, sampling)
        reach *= float(distribution.max())
        if not self.confident(reach):
            return None, reach
        q.append(distribution)
        return sequence.dice.draw(distribution), reach
