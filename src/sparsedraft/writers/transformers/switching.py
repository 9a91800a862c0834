"""Models whose rotary frequencies change at a length (longrope: Phi-3, Phi-3.5, Phi-4-mini), read as transformers does.

In transformers the last position of a pass decides the frequencies of the whole pass. A prompt is one pass, and every
later token is a pass of its own, so how a key was read decides which frequencies rotate it. Phi-3 also reads the whole
text again with the second frequencies once it grows beyond the first. A pass over many tokens (drafts, several rows)
must therefore be split where the frequencies change, and keys with the wrong frequencies must be read again.

`dynamic` frequencies need none of this: they change only beyond the context, where decoding ends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from sparsedraft.models.decoder import context_of
from sparsedraft.writers.transformers.backend import TransformersBackend


def switch_of(model: PreTrainedModel) -> int | None:
    """The length in tokens beyond which `model` has other rotary frequencies; None where none in its context does."""
    config = model.config.get_text_config()
    context, switches = context_of(config), _switches(getattr(config, "rope_parameters", None) or {})
    at = min(switches, default=None)
    return at if at is not None and (context is None or at < context) else None


def _switches(rope: dict[str, Any]) -> Iterator[int]:
    if rope.get("rope_type") == "longrope" and "original_max_position_embeddings" in rope:
        yield int(rope["original_max_position_embeddings"])
    for part in rope.values():
        if isinstance(part, dict):  # one for each kind of layer
            yield from _switches(part)


def reads_again(model: PreTrainedModel, at: int) -> bool:
    """Whether transformers drops the cache of `model` when a text grows beyond `at` tokens. Found out by trying, with a
    cache of `at` empty keys."""
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, at, 1), torch.zeros(1, 1, at, 1), 0)
    ids = torch.zeros(1, at + 1, dtype=torch.long, device=model.device)
    inputs = model.prepare_inputs_for_generation(  # type: ignore[operator]
        ids, next_sequence_length=1, cache=cache, attention_mask=torch.ones_like(ids), use_cache=True
    )
    return bool(inputs["input_ids"].shape[1] == at + 1)


@dataclass
class _Split:
    """How one row's new tokens are read. `first` and `second`: the tokens for the two passes, with the first and with
    the second frequencies. `beyond`: how many of the new tokens lie beyond the switch, so that their logits come from
    the second pass. `again`: the second pass reads the whole text, into an empty cache."""

    first: list[int] = field(default_factory=list)
    second: list[int] = field(default_factory=list)
    beyond: int = 0
    again: bool = False


class SwitchingBackend:
    """A backend for such a model.

    `at`: the length in tokens beyond which the second frequencies hold. `again`: whether the whole text is read again
    there. A row's prompt is what it gets first, without the last `logits` - 1 tokens.
    """

    def __init__(self, inner: TransformersBackend, at: int, again: bool) -> None:
        self.inner, self.at, self.again = inner, at, again
        self.max_length = inner.max_length
        self._texts: list[list[int]] = [[] for _ in inner.lengths]  # the inner cache may hold only a part of a text
        self._second = [False for _ in inner.lengths]  # whether all of a row was read with the second frequencies

    @property
    def passes(self) -> int:
        """Forward passes so far."""
        return self.inner.passes

    @property
    def lengths(self) -> list[int]:
        return [len(text) for text in self._texts]

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        cached = self.inner.lengths
        splits = [self._split(b, list(ids[b]), logits[b], cached[b]) for b in range(len(ids))]
        ends = [min(n, split.beyond) for n, split in zip(logits, splits, strict=True)]
        starts = [n - end for n, end in zip(logits, ends, strict=True)]
        first = self._pass([split.first for split in splits], starts)
        self.inner.rollback([0 if split.again else n for split, n in zip(splits, self.inner.lengths, strict=True)])
        second = self._pass([split.second for split in splits], ends)
        return [torch.cat([x for x in pair if len(x)] or [torch.empty(0)]) for pair in zip(first, second, strict=True)]

    def _split(self, b: int, new: list[int], logits: int, cached: int) -> _Split:
        """How row b reads its `new` tokens; `cached` tokens of its text are in the inner cache."""
        if not new:
            return _Split()
        before = len(self._texts[b])
        text = self._texts[b] = self._texts[b] + new
        prompt = len(new) - max(0, logits - 1) if before == 0 else 0
        if max(before, prompt) > self.at:
            self._second[b] |= prompt > self.at
            return _Split(second=text[cached:], beyond=len(new))
        beyond = max(0, len(text) - self.at)
        first = text[cached : self.at]
        if not (beyond and self.again):
            return _Split(first, text[self.at :], beyond)
        self._second[b] = True
        return _Split(first if logits > beyond else [], text, beyond, again=True)

    def _pass(self, ids: list[list[int]], logits: list[int]) -> list[Tensor]:
        if not any(ids):
            return [torch.empty(0) for _ in ids]
        out = self.inner.forward(ids, [max(n, bool(new)) for n, new in zip(logits, ids, strict=True)])
        return [x[len(x) - n :] for x, n in zip(out, logits, strict=True)]

    def rollback(self, lengths: Sequence[int]) -> None:
        inner_lengths = []
        for b, length in enumerate(lengths):
            if length < len(self._texts[b]):
                self._texts[b] = self._texts[b][:length]
                if self._second[b] and length <= self.at:  # everything is read again, with the first frequencies
                    self._second[b], length = False, 0
            inner_lengths.append(length)
        self.inner.rollback(inner_lengths)

    def select(self, rows: Sequence[int]) -> None:
        self._texts, self._second = [self._texts[b] for b in rows], [self._second[b] for b in rows]
        self.inner.select(rows)
