"""Where drafts come from: a model, or the text so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparsedraft.maths.sampling import Sampling, likeliest, penalised, probabilities, sound
from sparsedraft.speculate.policy.lookahead import always
from sparsedraft.speculate.sequence import Draft, Row
from sparsedraft.writers.backend import Backend
from sparsedraft.writers.prefix import shared


class Drafter(Protocol):
    """Proposes tokens for rows of sequences. It may hold a state per row, in the order of the rows it is given."""

    def propose(self, rows: Sequence[Row], wanted: Sequence[int]) -> list[Draft]:
        """At most wanted[b] tokens to follow rows[b].tokens."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Only these rows go on (by their place in the last call)."""
        ...


@dataclass(frozen=True)
class VocabularyMap:
    """Tokens that both vocabularies hold: `target[i]` and `drafter[i]` are the ids of the same token.

    `width` is the target's V.
    """

    target: Tensor
    drafter: Tensor
    width: int

    def logits(self, q_logits: Tensor) -> Tensor:
        """Drafter logits [n, V_q] over the target's ids [n, V_p]: -inf for what the drafter does not share."""
        found = q_logits.new_full((*q_logits.shape[:-1], self.width), -torch.inf)
        found[..., self.target] = q_logits[..., self.drafter]
        return found

    def inverse(self) -> dict[int, int]:
        """The drafter's id of each shared token, by the target's."""
        return dict(zip(self.target.tolist(), self.drafter.tolist(), strict=True))


class ModelDrafter:
    """A model that drafts token by token, all rows at once.

    `read` gives the ids of a row as the drafter sees them (default: the target's); `vocabulary` maps its logits to the
    target's; `confident` says whether a draft is worth its time: from the product of the top probabilities of its place
    and those before it, before anything is drawn there, so that it cannot bias the draw. `certain`: take the likeliest
    token, with no q to go with it.
    """

    def __init__(
        self,
        backend: Backend,
        sampling: Sampling,
        *,
        read: Callable[[Row], list[int]] = lambda row: row.tokens,
        vocabulary: VocabularyMap | None = None,
        confident: Callable[[float], bool] = always,
        certain: bool = False,
    ) -> None:
        self.backend, self.sampling, self.read, self.vocabulary = backend, sampling, read, vocabulary
        self.confident, self.certain = confident, certain or sampling.greedy
        plain = self.certain and vocabulary is None and confident is always and sampling.repetition_penalty == 1
        self._at_once = getattr(backend, "draft", None) if plain else None  # the native engine's: no logits leave it
        self._own = vocabulary.inverse() if vocabulary else {}  # from the target's ids
        self._seen: list[list[int]] = [[] for _ in backend.lengths]  # what each row of the cache holds

    def select(self, rows: Sequence[int]) -> None:
        self.backend.select(rows)
        self._seen = [self._seen[b] for b in rows]

    def propose(self, rows: Sequence[Row], wanted: Sequence[int]) -> list[Draft]:
        contexts = [self.read(row) if n > 0 else [] for row, n in zip(rows, wanted, strict=True)]
        room = self.backend.max_length
        left = [
            (n if room is None else min(n, room - len(context))) if context else 0  # nothing to go on from
            for n, context in zip(wanted, contexts, strict=True)
        ]
        unread = self._unread(contexts, [n > 0 for n in left])
        if self._at_once and len(rows) == 1 and left[0] > 0:
            tokens = self._at_once(left[0], unread[0])
            self._seen[0] += [*unread[0], *tokens[:-1]]
            return [Draft(tokens)]
        drafts: list[list[int]] = [[] for _ in rows]
        q: list[list[Tensor]] = [[] for _ in rows]
        reach = [1.0] * len(rows)
        while any(unread):
            found = self.backend.forward(unread, [int(bool(ids)) for ids in unread])
            for b, ids in enumerate(unread):
                self._seen[b] += ids
                unread[b] = []
                if not ids:
                    continue
                token, reach[b] = self._next(rows[b], drafts[b], found[b], q[b], reach[b])
                if token is None:
                    continue
                drafts[b].append(token)
                if len(drafts[b]) < left[b]:
                    unread[b] = [self._own[token] if self._own else token]
        return [Draft(drafted, None if self.certain else q[b]) for b, drafted in enumerate(drafts)]

    def distributions(self, row: Row, drafted: Sequence[int]) -> Tensor:
        """q [n + 1, V] after `row` and after each of its n drafts: what `propose` draws from where it draws these.

        The drafter has one row, and its context has room for them.
        """
        (unread,) = self._unread([self.read(row)], [True])
        unread += [self._own[token] if self._own else token for token in drafted]
        logits = self.backend.forward([unread], [len(drafted) + 1])[0]
        self._seen[0] += unread
        logits = sound(logits, "drafter", range(len(row.tokens), len(row.tokens) + len(logits)))
        logits = logits if self.vocabulary is None else self.vocabulary.logits(logits)
        return probabilities(penalised(logits, self.sampling, row.tokens, drafted), self.sampling)

    def _unread(self, contexts: list[list[int]], active: list[bool]) -> list[list[int]]:
        """The ids that each row has yet to read, after its cache is back at what it has in common with them."""
        common = [
            min(shared(seen, context), len(context) - 1) if on else len(seen)
            for seen, context, on in zip(self._seen, contexts, active, strict=True)
        ]
        self.backend.rollback(common)
        self._seen = [seen[:n] for seen, n in zip(self._seen, common, strict=True)]
        return [context[n:] if on else [] for context, n, on in zip(contexts, common, active, strict=True)]

    def _next(
        self, row: Row, drafted: list[int], logits: Tensor, q: list[Tensor], reach: float
    ) -> tuple[int | None, float]:
        """The next draft after `drafted`, from logits [1, V]; its distribution goes to `q`. None: stop here.

        `reach` is the chance of those before it, and is handed back with its own.
        """
        logits = sound(logits, "drafter", [len(row.tokens) + len(drafted)])
        if self.vocabulary is not None:
            logits = self.vocabulary.logits(logits)
        logits = penalised(logits, self.sampling, [*row.tokens, *drafted])[0]
        if self.certain:
            if self.confident is not always:
                reach *= float(logits.float().softmax(-1).max())
            return (int(likeliest(logits)) if self.confident(reach) else None), reach
        distribution = probabilities(logits, self.sampling)
        reach *= float(distribution.max())
        if not self.confident(reach):
            return None, reach
        q.append(distribution)
        return row.dice.draw(distribution), reach


class PromptLookup:
    """Drafting without a model: what followed the last time the newest `longest`..1 tokens occurred (Saxena 2023)."""

    def __init__(self, longest: int = 3) -> None:
        self.longest = longest

    def select(self, rows: Sequence[int]) -> None:
        """Nothing is held per row."""

    def propose(self, rows: Sequence[Row], wanted: Sequence[int]) -> list[Draft]:
        return [Draft(self._look(row.tokens, n)) for row, n in zip(rows, wanted, strict=True)]

    def _look(self, tokens: list[int], n: int) -> list[int]:
        if n <= 0:
            return []
        for size in range(min(self.longest, len(tokens) - 1), 0, -1):
            tail, last = tokens[-size:], tokens[-1]
            for end in range(len(tokens) - 2, size - 2, -1):  # `end`: where an earlier occurrence ends
                if tokens[end] == last and tokens[end - size + 1 : end + 1] == tail:
                    return tokens[end + 1 : end + 1 + n]
        return []
