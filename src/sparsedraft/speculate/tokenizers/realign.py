"""Drafts as text: what the drafter writes behind the seam is encoded in the target's vocabulary.

The answer may end where the drafter would not end a token ("déj" of "déjà", seven spaces of eight): what a model writes
after such a token is worth little. So its last tokens are given up for a longer one that begins with their text, where
the drafter finds that likelier and the target can still be about to write it ("token healing").
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsedraft.maths.sampling import Sampling, sound
from sparsedraft.models.tokenizers.detokenizer import Detokenizer, special_ids, tail
from sparsedraft.models.tokenizers.retokenizer import Retokenizer, clean, inner, pieces
from sparsedraft.models.tokenizers.vocab import surfaces
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.speculate.policy.protocol import Policy, always
from sparsedraft.speculate.tokenizers.uag import Readers
from sparsedraft.writers.protocol.backend import Backend

GIVEN_UP = 3  # tokens at the seam that a longer one may replace
CANDIDATES = 4  # longer tokens that are looked at


class RealignDrafter(ModelDrafter):
    """A drafter whose text is encoded again, as the target's tokens.

    `ends`: the drafter's end-of-turn ids; `eos`: the target's, whose head has the first `width` ids.
    """

    def __init__(
        self,
        backend: Backend,
        readers: Readers,
        target: PreTrainedTokenizerBase,
        drafter: PreTrainedTokenizerBase,
        *,
        ends: frozenset[int],
        eos: int | None,
        width: int,
        policy: Policy | None = None,
    ) -> None:
        confident = policy.confident if policy is not None else always
        super().__init__(
            backend, Sampling(), read=self._after_first, confident=confident, certain=True, heard=readers.whole
        )
        self.readers: Readers = readers
        self.target, self.drafter, self.eos, self.ends = target, drafter, eos, ends
        self.width = width
        self.cut = ends | special_ids(drafter)
        self.longer = longer(drafter)
        self._firsts: dict[int, First] = {}  # by the sequence's index

    def propose(self, sequences: Sequence[TokenSequence], limits: Sequence[int]) -> list[Draft]:
        self._tell(sequences, limits)
        self._firsts = self._first_tokens(sequences, limits)
        firsts = [self._firsts.get(sequence.index) for sequence in sequences]
        more = [
            limit - 1 if first is not None and first.drafted[-1] not in self.cut else 0
            for first, limit in zip(firsts, limits, strict=True)
        ]
        rest = super().propose(sequences, more)
        return [
            Draft(self._target_tokens(sequence, first, draft.tokens)[:limit] if first is not None else [])
            for sequence, first, draft, limit in zip(sequences, firsts, rest, limits, strict=True)
        ]

    def context(self, sequence: TokenSequence) -> list[int]:
        return self.readers(sequence)

    def sampling_of(self, sequence: TokenSequence) -> Sampling:
        return self.sampling  # how the target draws, its penalties among it, is told in its own tokens

    def grammar_of(self, sequence: TokenSequence) -> None:
        """None: a grammar is of the target's tokens. The loop cuts the draft at the first that it forbids."""

    def _after_first(self, sequence: TokenSequence) -> list[int]:
        first = self._firsts[sequence.index]
        return [*first.context, *first.drafted]

    def _first_tokens(self, sequences: Sequence[TokenSequence], limits: Sequence[int]) -> dict[int, "First"]:
        """The first drafted token of each sequence, from the logits after its context and after a little less of it."""
        contexts = [self.readers(s) if limit > 0 else [] for s, limit in zip(sequences, limits, strict=True)]
        room = self.backend.max_length
        active = [bool(context) and (room is None or len(context) < room) for context in contexts]
        # Tokens of the answer may be given up, as long as one token stays before them.
        back = [
            min(GIVEN_UP, len(self.readers.by_row[sequence.index].answer), len(context) - 1) if on else 0
            for sequence, context, on in zip(sequences, contexts, active, strict=True)
        ]
        heads = [context[: len(context) - n] for context, n in zip(contexts, back, strict=True)]
        unread = [
            ids + context[len(context) - n :] if on else []
            for ids, context, n, on in zip(self._unread(heads, active), contexts, back, active, strict=True)
        ]
        if not any(unread):
            return {}
        logits = self.backend.forward(unread, [n + 1 if on else 0 for n, on in zip(back, active, strict=True)])
        firsts = {}
        for b, sequence in enumerate(sequences):
            self._cached[b] += unread[b]
            if active[b] and (first := self._choose(sequence, contexts[b], logits[b])) is not None:
                firsts[sequence.index] = first
        return firsts

    def _choose(self, sequence: TokenSequence, context: list[int], logits: Tensor) -> "First | None":
        """The first draft, from logits [n + 1, V] after all but the last n, ..., all but the last, all of `context`."""
        sound(logits, "drafter", [len(context) - n for n in range(len(logits) - 1, -1, -1)])
        for n, token, odds in self.longer.instead(context, logits):
            kept, end = context[: len(context) - n], context[len(context) - n :]
            text = self._text_in_place_of(kept, end, [token])
            if text and self._can_follow(sequence, text):
                return First(kept, [token], end, odds / (1 + odds))
        likeliest, reach = super()._next(sequence, [], logits[-1:], [], 1.0)
        return None if likeliest is None else First(context, [likeliest], [], reach)

    def _next(
        self, sequence: TokenSequence, drafted: list[int], logits: Tensor, q: list[Tensor], reach: float
    ) -> tuple[int | None, float]:
        return super()._next(sequence, drafted, logits, q, reach if drafted else self._firsts[sequence.index].reach)

    def _text_in_place_of(self, kept: list[int], end: list[int], drafted: list[int]) -> str:
        """What `drafted`, in the place of `end` behind `kept`, adds to the text of `end`."""
        decoded = Detokenizer(self.drafter, tail(self.drafter, kept))
        text, known = decoded.whole(drafted), decoded.whole(end)
        return text[len(known) :] if text.startswith(known) else ""

    def _can_follow(self, sequence: TokenSequence, text: str) -> bool:
        """Whether the target, which has ended a token here, may go on with `text`. If not, it would have written a
        longer token."""
        last = self.readers.by_row[sequence.index].last
        text += "a" if text[-1].isspace() else ""  # spaces are cut otherwise before a word than at the end
        return clean(pieces(self.target, last + text), len(last))

    def _target_tokens(self, sequence: TokenSequence, first: "First", rest: list[int]) -> list[int]:
        """The target's tokens for what the drafter wrote, up to the drafter's first special token."""
        drafted = [*first.drafted, *rest]
        end = next((i for i, token in enumerate(drafted) if token in self.cut), len(drafted))
        text = self._text_in_place_of(first.context, first.end, drafted[:end])
        reader = self.readers.by_row[sequence.index]
        tokens = continuation(self.target, sequence.tokens[sequence.prompt :], reader, text)
        tokens = [*takewhile(lambda token: token < self.width, tokens)]
        ended = not self.ends.isdisjoint(drafted[end : end + 1])
        return [*tokens, self.eos] if ended and self.eos is not None else tokens


class First:
    """The first token of a draft: `drafted`, in the place of `end` behind `context`. `reach`: the probability of the
    token, of the two."""

    def __init__(self, context: list[int], drafted: list[int], end: list[int], reach: float) -> None:
        self.context, self.drafted, self.end, self.reach = context, drafted, end, reach


@lru_cache(maxsize=4)
def longer(tokenizer: PreTrainedTokenizerBase) -> "Longer":
    """The tokenizer's `Longer`, made once: a large vocabulary takes a second."""
    return Longer(tokenizer)


class Longer:
    """A vocabulary by what its tokens begin with."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        ordered = sorted(surfaces(tokenizer).items())
        self.written = [written for written, _ in ordered]
        self.ids = torch.tensor([number for _, number in ordered], dtype=torch.long)
        self.by_id = {number: written for written, number in ordered}

    def than(self, text: bytes) -> Tensor:
        """The tokens that begin with `text` and go on."""
        start, end = bisect_left(self.written, text + b"\0"), bisect_left(self.written, text + b"\xff")
        return self.ids[start:end]

    def instead(self, context: list[int], logits: Tensor) -> list[tuple[int, int, float]]:
        """(n, token, odds) of tokens likelier than the last n of `context`, which they begin with; the likeliest first.

        `logits` [m + 1, V] as in `RealignDrafter._choose`; odds > 1 are those of the token against what is there.
        """
        log_p = logits.float().log_softmax(-1).cpu()
        path, text, found = 0.0, b"", []
        for n in range(1, len(logits)):
            token, after = context[-n], log_p[len(logits) - 1 - n]
            if token not in self.by_id:
                break
            path, text = path + float(after[token]), self.by_id[token] + text
            ids = self.than(text)
            if len(ids):
                best = after[ids].topk(min(CANDIDATES, len(ids)))
                found += [(v - path, n, int(ids[i])) for v, i in zip(best.values.tolist(), best.indices, strict=True)]
        likelier = sorted((pair for pair in found if pair[0] > 0), reverse=True)[:CANDIDATES]
        return [(n, token, math.exp(min(odds, 50.0))) for odds, n, token in likelier]


def continuation(target: PreTrainedTokenizerBase, answer: Sequence[int], reader: Retokenizer, text: str) -> list[int]:
    """The target's tokens of `text`, which follows the text that `reader` has of `answer`.

    They are read off an encoding that begins well before the seam. Bytes of `answer` that are no character yet must be
    the beginning of the encoding's tokens behind the seam, else nothing is proposed.
    """
    if not text:
        return []
    begun = reader.begun(answer)
    found = pieces(target, reader.last + text, -len(reader.last))
    if not clean(found, 0):
        found = inner(target, text)  # a token would reach over the seam: what is written, is written
    tokens = [p.id for p in found if p.start >= 0]
    return tokens[len(begun) :] if tokens[: len(begun)] == begun else []
