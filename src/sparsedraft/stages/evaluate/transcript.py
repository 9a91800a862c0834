"""The real loop's numbers from a transcript of the target, for drafts that depend on where a step starts.

Across tokenizers, with look-up and with a window, a step drafts other tokens where it starts elsewhere, so one
teacher-forced pass is not enough. The loop sees nothing of a target but its text, and that is known:

- Drafts without a distribution (greedy, `realign`, look-up) are compared with the target's own choice, which is the
  text's next token. So the real loop runs with a `Transcript` in the target's place. Its histogram is the real one
  under greedy decoding, and one of its draws under sampling.
- `intersection`, and a drafter that reads a window, under sampling: given the text, p and q along it say by which
  chance its tokens were accepted drafts (see `simulation`), where q follows the drafts that are the text's tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsedraft.maths.sampling import Dice, Sampling, penalised, probabilities
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.sequence import TokenSequence
from sparsedraft.stages.evaluate.acceptance import Histogram
from sparsedraft.stages.evaluate.simulation import LogitsAfter, kept, over_chains, ratio
from sparsedraft.writers.conversation import Answer
from sparsedraft.writers.loaded import LoadedModel


class Transcript:
    """A Backend whose logits allow one token at each place: the next one of a known text, one text a row.

    `texts` are whole sequences, `width` is V, `max_length` the context of the model that wrote them. After a token that
    is not in the text the logits mean nothing; the loop never uses them, since it has rejected that draft.
    """

    def __init__(self, texts: Sequence[Sequence[int]], width: int, max_length: int | None) -> None:
        self._texts, self._width, self.max_length = [list(text) for text in texts], width, max_length
        self._lengths = [0 for _ in texts]

    @classmethod
    def of(cls, target: LoadedModel, answers: Sequence[Answer]) -> "Transcript":
        """The transcript of `answers`, which `target` wrote."""
        return cls([[*a.prompt_ids, *a.answer_ids] for a in answers], target.width, target.context)

    @property
    def lengths(self) -> list[int]:
        return list(self._lengths)

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        """See Backend."""
        self._lengths = [length + len(new) for length, new in zip(self._lengths, ids, strict=True)]
        return [self._after(*row) for row in zip(self._texts, self._lengths, logits, strict=True)]

    def _after(self, text: list[int], length: int, n: int) -> Tensor:
        tokens = text[length - n + 1 : length + 1]
        tokens += [0] * (n - len(tokens))  # after the end of the text nothing is emitted
        return torch.full((n, self._width), -torch.inf).scatter_(1, torch.tensor(tokens)[:, None], 0.0)

    def rollback(self, lengths: Sequence[int]) -> None:
        self._lengths = [min(length, limit) for length, limit in zip(self._lengths, lengths, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        self._texts, self._lengths = [self._texts[b] for b in rows], [self._lengths[b] for b in rows]


Chain = tuple[int, list[float]]  # how many drafts a step makes, and for each text token among them its chance


def chains(
    drafter: ModelDrafter,
    p: LogitsAfter,
    prompt: Sequence[int],
    answer: Sequence[int],
    k: int,
    room: int,
    sampling: Sampling,
) -> tuple[Tensor, list[Chain]]:
    """(Σ_v min(p, q) [n] at each place of the text, whose mean is α; the `Chain` of a step with K = k from each place).

    `drafter` samples from a part of the target's vocabulary, or reads a part of the text, and makes q by its own
    sampling; `p` gives the target's logits, of which `sampling` makes p; `room` as in `simulate`.
    """
    n, tokens, vocabulary, full = len(answer), [*prompt, *answer], drafter.vocabulary, drafter.backend.max_length
    writable = vocabulary.inverse().keys() if vocabulary is not None else {*answer}
    p_chances = probabilities(penalised(p(tokens[:-1], n), sampling, prompt, answer), sampling).cpu()
    shares, chains_at = torch.zeros(n), []
    for at in range(n):
        rest = answer[at:]
        row = TokenSequence(0, tokens[: len(prompt) + at], len(prompt), len(tokens), Dice(0))
        left = len(tokens) if full is None else max(0, full - len(drafter.read(row)))
        drafted = min(k, room - at - 1, left)
        # a token that the drafter cannot write ends the chain: that draft and those after it have the chance 0
        dead = next((i for i, token in enumerate(rest) if token not in writable), len(rest))
        length = min(max(1, drafted), dead + 1, len(rest), left)  # one at least, for α
        chances: list[float] = []
        if length:
            q_chances = drafter.distributions(row, rest[: length - 1]).cpu()  # the chain's drafts are the text's tokens
            least = torch.minimum(p_chances[at : at + length], q_chances)
            shares[at] = least[0].sum()
            these = torch.tensor(rest[:length])[:, None]
            ratios = ratio(q_chances, p_chances[at : at + length], these)
            chances = kept(ratios[:, 0].tolist(), sampling.verification)
        possible = min(drafted, len(rest))
        chains_at.append((drafted, [*chances, *[0.0] * possible][:possible]))
    return shares, chains_at


def shorter(chains_at: Sequence[Chain], k: int) -> Histogram:
    """The expected histogram with K = k, from chains of as many drafts or more."""
    return over_chains([(min(k, drafted), chances[:k]) for drafted, chances in chains_at], k)
