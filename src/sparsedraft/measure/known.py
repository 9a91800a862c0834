"""The real loop's numbers where the drafter does not read the target's own tokens, still without the target's passes.

Across tokenizers what is drafted depends on where a step starts, and so does what look-up finds: one teacher-forced
pass does not tell. But the text is known, and that is all of the target that the loop sees:

- Drafts without a distribution (greedy, `realign`, look-up) are compared with the target's own choice, which is the
  text's next token. So the real loop runs with a `Known` target in the model's place; its histogram is the real one,
  greedy, and one of its draws under sampling.
- `intersection` under sampling: given the text, a draft stood where its token x does with the chance
  min(p(x), q(x)) / p(x) (see measure.simulate), with q that of the chain of drafts that are the text's tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsedraft.conversation import Answer
from sparsedraft.measure.acceptance import Histogram
from sparsedraft.measure.simulate import over_chains
from sparsedraft.speculate.backend import Backend
from sparsedraft.speculate.drafters import ModelDrafter
from sparsedraft.speculate.sampling import Dice, Sampling, penalised, probabilities
from sparsedraft.speculate.sequence import Row
from sparsedraft.speculate.side import Side


class Known:
    """A target of one row whose text is known, as a Backend: its logits leave no choice but the text's next token.

    `width` is V, `max_length` the context of the model whose text it is. Behind tokens that the text does not have the
    logits mean nothing, and the loop asks them nothing: it has rejected the drafts that lead there.
    """

    def __init__(self, prompt: Sequence[int], answer: Sequence[int], width: int, max_length: int | None) -> None:
        self._text, self._width, self._length, self.max_length = [*prompt, *answer], width, 0, max_length

    @classmethod
    def of(cls, target: Side, answer: Answer) -> "Known":
        """In the place of `target`, which wrote `answer`."""
        return cls(answer.prompt_ids, answer.answer_ids, target.width, target.context)

    @property
    def lengths(self) -> list[int]:
        return [self._length]

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        """See Backend."""
        self._length += len(ids[0])
        following = self._text[self._length - logits[0] + 1 : self._length + 1]
        following += [0] * (logits[0] - len(following))  # behind the end of the text nothing is emitted
        found = torch.full((logits[0], self._width), -torch.inf)
        return [found.scatter_(1, torch.tensor(following)[:, None], 0.0)]

    def rollback(self, lengths: Sequence[int]) -> None:
        self._length = min(self._length, lengths[0])

    def select(self, rows: Sequence[int]) -> None:
        """One row: nothing to choose."""


class Told(Dice):
    """Chances that always fall on the tokens of a text, one after the other."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = iter(tokens)

    def draw(self, distribution: Tensor) -> int:
        return next(self.tokens)


Chain = tuple[int, list[float]]  # how many drafts a step would make, and the chance of each that stands in the text


def chains(
    drafter: ModelDrafter, p: Backend, prompt: Sequence[int], answer: Sequence[int], k: int, room: int,
    sampling: Sampling,
) -> tuple[Tensor, list[Chain]]:  # fmt: skip
    """(Σ_v min(p, q) [n] at each place of the text, whose mean is α; the `Chain` of a step with K = k from there on).

    `drafter` samples, from a part of the target's vocabulary; `p` is the target's empty Backend; `room` as in
    `simulate`.
    """
    n, tokens, vocabulary = len(answer), [*prompt, *answer], drafter.vocabulary
    assert vocabulary is not None, "a drafter with all of the target's tokens reads its text: see measure.simulate"
    writable = vocabulary.inverse().keys()
    theirs = probabilities(penalised(p.forward([tokens[:-1]], [n])[0], sampling, prompt, answer), sampling).cpu()
    shares, found = torch.zeros(n), []
    for at in range(n):
        rest = answer[at:]
        row = Row(0, tokens[: len(prompt) + at], len(prompt), len(tokens), Told(rest))
        drafted = min(k, room - at - 1)
        if drafter.backend.max_length is not None:
            drafted = max(0, min(drafted, drafter.backend.max_length - len(drafter.read(row))))
        # a token that the drafter cannot write ends the chain: the chance of that draft, and of those behind it, is 0
        dead = next((i for i, token in enumerate(rest) if token not in writable), len(rest))
        wanted = min(max(1, drafted), dead + 1, len(rest))  # one at least, for α
        q = drafter.propose([row], [wanted])[0].q or []
        least = [torch.minimum(theirs[at + i], distribution.cpu()) for i, distribution in enumerate(q)]
        chances = [
            float((each[x] / theirs[at + i, x]).nan_to_num(0.0))
            for i, (each, x) in enumerate(zip(least, rest, strict=False))
        ]
        if least:
            shares[at] = least[0].sum()
        possible = min(drafted, len(rest))
        found.append((drafted, [*chances, *[0.0] * possible][:possible]))
    return shares, found


def shorter(found: Sequence[Chain], k: int) -> Histogram:
    """The expected histogram with K = k, from chains of as many drafts or more."""
    return over_chains([(min(k, drafted), chances[:k]) for drafted, chances in found], k)
