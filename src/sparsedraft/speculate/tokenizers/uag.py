"""Universal Assisted Generation: drafts from a model with another tokenizer (Timor et al. 2025).

`realign` (see `realign.py`) passes text, encoded in the target's vocabulary around the seam. Such drafts have no
distribution over the target's tokens, so they are verified by exact match with the target's own choice, greedy or
drawn: lossless either way, with less accepted under sampling. `intersection` limits the drafter to the tokens that
both vocabularies hold, with their ids mapped: then q is a distribution over the target's tokens, and the ordinary rule
holds.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.tokenizers.detokenizer import text_of
from sparsedraft.models.tokenizers.retokenizer import Retokenizer
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.drafters.parallel import model_drafter
from sparsedraft.speculate.drafters.vocabulary import VocabularyMap
from sparsedraft.speculate.drafters.window import Window, left_of
from sparsedraft.speculate.loop.sequence import TokenSequence
from sparsedraft.speculate.policy.protocol import Policy, always
from sparsedraft.writers.protocol.backend import Backend


class Readers:
    """The sequences as the drafter reads them: a Retokenizer each.

    `prompts`: those of the first sequences as (target, drafter) ids; others are admitted. `known`: how many ids the
    drafter can read; others become 0. Of a long sequence only `window` is read.
    """

    def __init__(
        self,
        target: PreTrainedTokenizerBase,
        drafter: PreTrainedTokenizerBase,
        prompts: Sequence[tuple[Sequence[int], Sequence[int]]],
        known: int,
        window: Window | None = None,
    ) -> None:
        self.target, self.drafter, self.known, self.window = target, drafter, known, window
        self.by_row = {i: Retokenizer(target, drafter, own, ids) for i, (ids, own) in enumerate(prompts)}
        self.same: dict[int, int] = {}  # the drafter's ids of tokens that both have

    def admit(self, sequence: TokenSequence) -> None:
        """Read this sequence, too."""
        prompt = sequence.tokens[: sequence.prompt]
        own = sequence.read_as
        if own is None:
            own = opening(self.drafter, text_of(self.target, prompt))
        self.by_row[sequence.index] = Retokenizer(self.target, self.drafter, own, prompt)

    def leave(self, index: int) -> None:
        """The sequence of this index will not be seen again."""
        del self.by_row[index]

    def __call__(self, sequence: TokenSequence) -> list[int]:
        """What the window leaves of `whole`."""
        return left_of(self.window, self.whole(sequence))

    def whole(self, sequence: TokenSequence) -> list[int]:
        """The drafter's ids, with the first bytes of an incomplete character where the drafter has tokens for them."""
        reader, answer = self.by_row[sequence.index], sequence.tokens[sequence.prompt :]
        ids, begun = reader.ids(answer), reader.begun(answer)
        ids += [self.same[t] for t in begun] if all(t in self.same for t in begun) else []
        return [token if token < self.known else 0 for token in ids]


def intersection_drafter(
    backend: Backend,
    readers: Readers,
    vocabulary: VocabularyMap,
    sampling: Sampling,
    policy: Policy | None = None,
    mask_token: int | None = None,
    factor: float = 1.0,
) -> ModelDrafter:
    """A drafter limited to the tokens in `vocabulary`; with a mask token it drafts in parallel. `factor` is that of
    ModelDrafter."""
    confident = policy.confident if policy is not None else always
    readers.same = vocabulary.inverse()
    how = {"read": readers, "vocabulary": vocabulary, "confident": confident, "heard": readers.whole}
    found = model_drafter(backend, sampling, mask_token, factor=factor, **how)
    found.readers = readers
    return found


def opening(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text to be continued: with the special tokens that the tokenizer puts before it, not those behind.

    Special tokens spelled out in the text are text. Never empty, because a model must have read something.
    """
    ids: list[int] = tokenizer(text, split_special_tokens=True)["input_ids"]
    plain = tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    for i in range(len(ids) - len(plain) + 1):
        if plain and ids[i : i + len(plain)] == plain:
            return ids[: i + len(plain)]
    first = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
    return ids[:1] or [next(token for token in first if token is not None)]


def require_offsets(target: PreTrainedTokenizerBase, drafter: PreTrainedTokenizerBase) -> None:
    """UserError unless both tokenizers say where in a text their tokens lie."""
    for who, tokenizer in (("target", target), ("drafter", drafter)):
        if not tokenizer.is_fast:
            raise UserError(
                f"the {who}'s tokenizer is none of the `tokenizers` library, without which two that differ cannot be "
                "brought together: give a model with a tokenizer.json."
            )


def choose(
    route: str, greedy: bool, target: PreTrainedTokenizerBase, drafter: PreTrainedTokenizerBase, overlap: int
) -> tuple[str, str]:
    """(route, reason) for tokenizers that differ and share `overlap` tokens. UserError for an impossible route."""
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
    pairs = {
        p: q for surface, p in target.items() if (q := drafter.get(surface)) is not None and p < width and q < rows
    }
    p_end, q_end = ends
    if p_end is not None and q_end is not None:
        pairs = {p: q for p, q in pairs.items() if p != p_end and q != q_end} | {p_end: q_end}
    order = sorted(pairs)
    return VocabularyMap(torch.tensor(order, dtype=torch.long), torch.tensor([pairs[p] for p in order]), width)
