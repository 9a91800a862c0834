"""Grammars by llguidance: made of schemas aside from all other work, kept by their text, and followed token by token.

Why llguidance and not xgrammar: both were asked for the same hundred schemas (tests/serve/test_keywords.py keeps
them). xgrammar 0.2.9 let 24 of them through that it does not hold, most without a word, allOf, not, oneOf and required
names among them, and takes a `pattern` as the whole string. llguidance 1.9.1 refuses what it cannot hold, but for what
serve/schemas.py sees to. Its masks stay right when tokens are taken back, which is tested, too.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsedraft.writers.prefix import shared

KEPT = 64  # grammars
MASKS = 64  # of one text: more than a step asks for
SECONDS = 10.0  # until a client is told that its grammar takes too long


class Unmade(ValueError):
    """A grammar that cannot be made: why, in a few words."""


class TextGrammar:
    """The grammar of one text, which may take tokens back. See `loop.grammar.Grammar`.

    `fresh` makes a matcher at the beginning; none is told the token that ends the text, which may be any of `ends`
    where the matcher accepts. `width` is V.
    """

    def __init__(self, fresh: Callable[[], Any], width: int, ends: frozenset[int]) -> None:
        self._fresh, self._matcher, self._width = fresh, fresh(), width
        self._ends, self._end_ids = ends, torch.tensor(sorted(end for end in ends if end < width), dtype=torch.long)
        self._path: list[int] = []  # the tokens that the matcher has read
        self._masks: OrderedDict[int, Tensor] = OrderedDict()  # by how many tokens of the path they follow
        self.error = ""

    def allowed(self, written: Sequence[int]) -> Tensor | None:
        if not self._ends.isdisjoint(written):
            return None
        written = [*written]
        known = shared(self._path, written)
        if known == len(written) and known in self._masks:
            return self._masks[known]
        if not self._go_on(written, known):
            return None
        mask = self._masks[len(written)] = self._mask()
        if len(self._masks) > MASKS:
            self._masks.popitem(last=False)
        return mask

    def _go_on(self, written: list[int], known: int) -> bool:
        """Let the matcher read `written`, of which it knows the first `known` tokens; False where it is forbidden."""
        if known < len(self._path):
            for length in [length for length in self._masks if length > known]:
                del self._masks[length]
            taken_back = self._matcher.rollback(len(self._path) - known)
            self._path = self._path[:known] if taken_back else []
            if not taken_back:
                self._matcher = self._fresh()
        new = written[len(self._path) :]
        read = self._matcher.try_consume_tokens(new) if new else 0
        self._path += new[:read]
        return read == len(new)

    def _mask(self) -> Tensor:
        """The mask after the path. A grammar that fails lets the text end, and says why."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found = np.zeros(self._width, dtype=bool)
        count = min(self._width, 8 * len(bits))
        found[:count] = np.unpackbits(bits, count=count, bitorder="little")
        mask = torch.from_numpy(found)
        mask[self._end_ids] = self._matcher.is_accepting()
        if self._matcher.is_error() or not found.any():
            self.error = self.error or reason(self._matcher.get_error()) or "no token can follow"
            mask[self._end_ids] = True
        return mask


class Grammars:
    """Makes grammars for the texts of one model. `width` is the V of its logits, `ends` the tokens that end a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, width: int, ends: frozenset[int]) -> None:
        self._tokenizer, self._width, self._ends = tokenizer, width, ends
        self._made: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "sparsedraft-grammar")

    async def make(self, text: str) -> Callable[[], TextGrammar]:
        """Makes one for each answer, of the grammar `text` in llguidance's dialect of Lark.

        It is compiled on a thread of its own. Unmade where it cannot be, TimeoutError where it takes too long.
        """
        work = asyncio.get_running_loop().run_in_executor(self._pool, self._compiled, text)
        matcher = await asyncio.wait_for(work, SECONDS)
        return lambda: TextGrammar(matcher.deep_copy, self._width, self._ends)

    def _compiled(self, text: str) -> Any:
        with self._lock:
            if text in self._made:
                self._made.move_to_end(text)
                return self._made[text]
        import llguidance

        matcher = llguidance.LLMatcher(self._reader, text, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first takes the longest, and shows what no text can satisfy
        if matcher.is_error():
            raise Unmade(reason(matcher.get_error()))
        if matcher.is_stopped() and not matcher.is_accepting():
            raise Unmade("no text satisfies it")
        with self._lock:
            self._made[text] = matcher
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
        return matcher

    @cached_property
    def _reader(self) -> Any:
        """The tokenizer as llguidance reads it, which takes about a second."""
        import llguidance.hf

        if not self._ends:
            raise Unmade("the model has no token that ends a text")
        width = max(self._width, len(self._tokenizer))
        try:
            tokenizer: Any = self._tokenizer
            return llguidance.hf.from_tokenizer(tokenizer, n_vocab=width, eos_token=sorted(self._ends))
        except Exception as error:  # it takes fast tokenizers, and of these not all
            raise Unmade(f"the model's tokenizer has no grammars: {reason(str(error))}") from None


def reason(told: str) -> str:
    """What the engine says, in one line, without the state that it prints behind."""
    words = " ".join(told.partition("<state>")[0].split()).rstrip(".")
    return words if len(words) <= 200 else f"{words[:200]}..."
