"""What a drafter keeps of a text: tokens in its cache, and the memory that they take."""

import ctypes
from dataclasses import dataclass
from typing import Any, cast

from long_context import resident
from sparsedraft.maths.sampling import Dice, Sampling
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.sequence import TokenSequence
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant


@dataclass(frozen=True)
class Kept:
    """The most tokens that the drafter's cache held, and the bytes by which the process grew.

    `alive` keeps that memory in use: what is measured after it grows by its own.
    """

    tokens: int
    bytes: int
    alive: Any


def kept_of(pair: Pair, ids: list[int], k: int, written: int = 0) -> Kept:
    """What the drafter of `pair` keeps behind the prompt `ids`, and while `written` tokens follow it, `k` a step.

    Its own drafts stand for them: the target does nothing here. The pair has one tokenizer, and no look-up.
    """
    decoder = pair.decoder([pair.prompt_pair(ids)], Constant(k), Sampling())
    drafter = cast(ModelDrafter, decoder.drafter)
    before, most = _in_use(), 0
    sequence = TokenSequence(0, [*ids], len(ids), len(ids) + written + 2 * k, Dice(0))
    while True:
        (draft,) = drafter.propose([sequence], [k])
        most = max(most, *drafter.backend.lengths)
        if len(sequence.tokens) - sequence.prompt >= written:
            return Kept(most, _in_use() - before, decoder)
        sequence.tokens += draft.tokens


def _in_use() -> int:
    """Bytes of this process in memory, without those that were freed and would be taken again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    return resident()
