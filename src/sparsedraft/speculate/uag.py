"""Universal Assisted Generation: drafts from a model with another tokenizer (Timor et al. 2025).

`realign` passes text: what the drafter writes is encoded in the target's vocabulary around the seam. Such drafts have
no distribution over the target's tokens, so they are verified by exact match with the target's own choice, greedy or
drawn: lossless either way, with less accepted under sampling. `intersection` limits the drafter to the tokens that both
vocabularies hold, with their ids mapped: then q is a distribution over the target's tokens, and the ordinary rule holds.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from sparsedraft.errors import UserError
from sparsedraft.speculate.backend import Backend
from sparsedraft.speculate.drafters import ModelDrafter, VocabularyMap, always
from sparsedraft.speculate.lookahead import Policy
from sparsedraft.speculate.retokenize import BROKEN, Detokenizer, Retokenizer, pieces
from sparsedraft.speculate.sampling import Sampling
from sparsedraft.speculate.sequence import Draft, Row


class Readers:
    """The rows as the drafter reads them: a Retokenizer each."""

    def __init__(
        self,
        target: PreTrainedTokenizerBase,
        drafter: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
    ) -> None:
        self.by_row = [Retokenizer(target, drafter, ids) for ids in prompts]

    def __call__(self, row: Row) -> list[int]:
        return self.by_row[row.index].ids(row.tokens[row.prompt :])


def intersection_drafter(
    backend: Backend, readers: Readers, vocabulary: VocabularyMap, sampling: Sampling, policy: Policy | None = None
) -> ModelDrafter:
    """A drafter limited to the tokens in `vocabulary`."""
    confident = policy.confident if policy is not None else always
    return ModelDrafter(backend, sampling, read=readers, vocabulary=vocabulary, confident=confident)


class RealignDrafter:
    """A drafter whose text is encoded again as the target's tokens. `ends`: its end-of-turn ids; `eos`: the target's."""

    def __init__(
        self,
        backend: Backend,
        readers: Readers,
        target: PreTrainedTokenizerBase,
        drafter: PreTrainedTokenizerBase,
        *,
        ends: frozenset[int],
        eos: int | None,
        policy: Policy | None = None,
    ) -> None:
        self.readers, self.target, self.eos, self.ends = readers, target, eos, ends
        self.text = Detokenizer(drafter).text
        confident = policy.confident if policy is not None else always
        self.inner = ModelDrafter(backend, Sampling(), read=readers, confident=confident, certain=True)

    def select(self, rows: Sequence[int]) -> None:
        self.inner.select(rows)

    def propose(self, rows: Sequence[Row], wanted: Sequence[int]) -> list[Draft]:
        drafts = self.inner.propose(rows, wanted)
        return [
            Draft(self._aligned(row, draft.tokens)[:n]) for row, draft, n in zip(rows, drafts, wanted, strict=True)
        ]

    def _aligned(self, row: Row, drafted: list[int]) -> list[int]:
        """The target's tokens for what the drafter wrote in its own."""
        reader = self.readers.by_row[row.index]
        end = next((i for i, token in enumerate(drafted) if token in self.ends), None)
        context = reader.ids(row.tokens[row.prompt :])[len(reader.prompt_ids) :][-8:]
        before = self.text(context)
        text = self.text([*context, *drafted[:end]])[len(before) :].rstrip(BROKEN)
        tokens = continuation(self.target, row.tokens[row.prompt :], reader, text)
        return [*tokens, self.eos] if end is not None and self.eos is not None else tokens


def continuation(target: PreTrainedTokenizerBase, answer: Sequence[int], reader: Retokenizer, text: str) -> list[int]:
    """The target's tokens of `text`, which follows the text that `reader` has of `answer`.

    They are read off an encoding that begins some tokens before the seam. Bytes of `answer` that are no character yet
    must be the beginning of the encoding's tokens behind the seam, else nothing is proposed.
    """
    if not text:
        return []
    begun = [*answer[reader.seen.pending :]]
    seam = len(reader.text)
    start = max(0, seam - 24)
    while 0 < start < seam and not reader.text[start].isspace():  # at the beginning of a word
        start += 1
    found = pieces(target, reader.text[start:seam] + text, start)
    tokens = [p.id for p in found if p.start >= seam]
    if not any(p.start == seam for p in found) or any(p.start < seam < p.end for p in found):
        tokens = [p.id for p in pieces(target, text)]  # a token would reach over the seam: what is written, is written
    if tokens[: len(begun)] != begun:
        return []
    return tokens[len(begun) :]


def choose(
    route: str, greedy: bool, target: PreTrainedTokenizerBase, drafter: PreTrainedTokenizerBase, overlap: int
) -> tuple[str, str]:
    """(route, why) for tokenizers that differ and share `overlap` tokens. UserError where it is not possible."""
    size = len(drafter)
    share = overlap / max(1, size)
    if route == "off":
        raise UserError(
            f"the target and the drafter have different tokenizers ({len(target)} and {size} tokens, {overlap} in "
            "both): set --uag to auto, realign or intersection."
        )
    if route == "intersection" and not overlap:
        raise UserError("the vocabularies have no token in common: set --uag realign.")
    if route != "auto":
        return route, "as asked for"
    if greedy:
        if share > 0.95:
            return "intersection", f"{share:.0%} of the drafter's tokens are the target's, too"
        return "realign", "greedy drafts lose nothing as text, and the drafter keeps all of its tokens"
    if share >= 0.3:
        return "intersection", f"{share:.0%} of the drafter's tokens are the target's, too, and sampling needs their q"
    return "realign", f"only {share:.0%} of the drafter's tokens are the target's, too"


def vocabulary_map(
    target: dict[bytes, int], drafter: dict[bytes, int], width: int, rows: int, ends: tuple[int | None, int | None]
) -> VocabularyMap:
    """The tokens with equal bytes in both (`surfaces`), below `width` and `rows`, the rows of the heads; and the
    end-of-turn tokens of (target, drafter), whatever they are called."""
    pairs = {p: q for surface, p in target.items() if (q := drafter.get(surface)) is not None and p < width and q < rows}
    p_end, q_end = ends
    if p_end is not None and q_end is not None:
        pairs = {p: q for p, q in pairs.items() if p != p_end and q != q_end} | {p_end: q_end}
    order = sorted(pairs)
    return VocabularyMap(torch.tensor(order, dtype=torch.long), torch.tensor([pairs[p] for p in order]), width)
