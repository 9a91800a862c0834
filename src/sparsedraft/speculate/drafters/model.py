"""Where drafts come from: a model, or the text so far."""

from collections.abc import Callable, Sequence

from torch import Tensor

from sparsedraft.maths.sampling import Sampling, likeliest, penalised, probabilities, sound
from sparsedraft.speculate.drafters.vocabulary import VocabularyMap
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.speculate.policy.protocol import always
from sparsedraft.writers.prefix import shared
from sparsedraft.writers.protocol.backend import Backend


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
        read: Callable[[TokenSequence], list[int]] = lambda row: row.tokens,
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

    def propose(self, rows: Sequence[TokenSequence], wanted: Sequence[int]) -> list[Draft]:
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

    def distributions(self, row: TokenSequence, drafted: Sequence[int]) -> Tensor:
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
        self, row: TokenSequence, drafted: list[int], logits: Tensor, q: list[Tensor], reach: float
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
