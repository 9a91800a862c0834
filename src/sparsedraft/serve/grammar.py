"""Grammars by llguidance: made of schemas aside from all other work, kept by their text, and followed token by token.

Why llguidance and not xgrammar: both were asked for the same hundred schemas, most of which are kept in
tests/serve/test_keywords.py. xgrammar 0.2.9 took about thirty that it does not hold, allOf, not, oneOf and names that
are required among them, and takes a `pattern` as the whole string. llguidance 1.9.1 refuses what it cannot hold, but
for what serve/schemas.py sees to, and its masks stay right when tokens are taken back, which is tested, too.
"""

import asyncio
import re
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

from sparsedraft.models.tokenizers.detokenizer import special_ids
from sparsedraft.writers.prefix import shared

KEPT = 64  # grammars
MASKS = 64  # of one text: more than a step asks for
WHERE = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: ")
SHOWN = re.compile(r"<state>|\n\s*\d+ \| ")  # what is behind it shows the grammar, or the engine's state
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
        self._failed: tuple[list[int], str] = ([], "")  # where it did last, a draft that is rejected or not, and why

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

    def fault(self, written: Sequence[int]) -> str:
        path, why = self._failed
        return why if len(written) > len(path) and [*written[: len(path)]] == path else ""

    def follows(self, written: Sequence[int]) -> bool:
        """Whether a text can begin with `written`."""
        return self._go_on([*written], shared(self._path, written))

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
            self._failed = [*self._path], reason(self._matcher.get_error()) or "no token can follow"
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
        loop = asyncio.get_running_loop()
        matcher = self._known(text)  # which need not wait for those that are compiled now
        if matcher is None:
            if "_reader" not in vars(self):  # the first time, it is read, which is no fault of the grammar
                await loop.run_in_executor(self._pool, lambda: self._reader)
            matcher = await asyncio.wait_for(loop.run_in_executor(self._pool, self._compiled, text), SECONDS)
        return lambda: TextGrammar(matcher.deep_copy, self._width, self._ends)

    def _known(self, text: str) -> Any:
        """The grammar of `text` where it is kept; None: it is not."""
        with self._lock:
            if text in self._made:
                self._made.move_to_end(text)
            return self._made.get(text)

    def _compiled(self, text: str) -> Any:
        if (known := self._known(text)) is not None:
            return known
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
        """The tokenizer as llguidance reads it, which takes seconds for a large vocabulary."""
        import llguidance
        import llguidance.hf

        if not self._ends:
            raise Unmade("the model has no token that ends a text")
        tokenizer: Any = self._tokenizer
        try:
            known = llguidance.hf.from_tokenizer(tokenizer)
        except Exception as error:  # it takes fast tokenizers, and of these not all
            raise Unmade(f"the model's tokenizer has no grammars: {reason(str(error))}") from None
        words = Words(tokenizer, known, min(self._ends), self._width)
        wrapper = llguidance.TokenizerWrapper(words)
        return llguidance.LLTokenizer(wrapper, n_vocab=len(words.tokens), eos_token=sorted(self._ends))


class Words:
    """What each token writes. llguidance takes all that looks like <tool_call> for special tokens, and keeps them out
    of texts; here only those are special that a text does not show."""

    bos_token_id = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, known: Any, end: int, width: int) -> None:
        self._tokenizer, self.eos_token_id = tokenizer, end
        self.tokens = [bytes(known.decode_bytes([token])) for token in range(known.vocab_size)]
        self.tokens += [b""] * (width - len(self.tokens))
        self.special_token_ids = sorted(special_ids(tokenizer))

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of a text."""
        text = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return [*self._tokenizer(text, add_special_tokens=False)["input_ids"]]


def reason(told: str) -> str:
    """What the engine says, in one line, without where in the grammar, and without the state that it prints behind."""
    told = WHERE.sub("", SHOWN.split(told)[0])
    if told.startswith("oneOf"):
        return "oneOf of cases that are not told apart by their type, or by a constant that each requires"
    if told.startswith("NoExtension"):
        return "no text satisfies it"
    words = " ".join(told.split()).rstrip(".")
    return words if len(words) <= 200 else f"{words[:200]}..."
