"""Models whose rotary frequencies change at a length (longrope: Phi-3, Phi-3.5, Phi-4-mini), read as transformers does.

In transformers the frequencies of a pass follow from its last position. A prompt is one pass, whatever follows is one
token a pass. So a key is rotated by the one set or the other according to how it was read, and Phi-3 in addition reads
everything again with the second set once a text grows beyond the first. Passes of many tokens, of drafts or of several
rows, must therefore be parted where the frequencies change, and keys of the wrong set be read again.

`dynamic` frequencies need none of this: they change beyond the context only, where decoding ends.
"""

from collections.abc import Iterator, Sequence
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
    context, found = context_of(config), [*_switches(getattr(config, "rope_parameters", None) or {})]
    at = min(found, default=None)
    return at if at is not None and (context is None or at < context) else None


def _switches(rope: dict[str, Any]) -> Iterator[int]:
    if rope.get("rope_type") == "longrope" and "original_max_position_embeddings" in rope:
        yield int(rope["original_max_position_embeddings"])
    for part in rope.values():
        if isinstance(part, dict):  # one for each kind of layer
            yield from _switches(part)


def reads_again(model: PreTrainedModel, at: int) -> bool:
    """Whether transformers drops the cache of `model` when a text grows beyond `at` tokens: tried, with a cache of so
    many empty keys."""
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, at, 1), torch.zeros(1, 1, at, 1), 0)
    ids = torch.zeros(1, at + 1, dtype=torch.long, device=model.device)
    inputs = model.prepare_inputs_for_generation(  # type: ignore[operator]
        ids, next_sequence_length=1, cache=cache, attention_mask=torch.ones_like(ids), use_cache=True
    )
    return bool(inputs["input_ids"].shape[1] == at + 1)


class SwitchingBackend:
    """A TransformersBackend of such a model. `at`: the length beyond which its frequencies are others; `again`: whether
    all is read again there. A row's prompt is what comes first, before the last `logits` - 1 tokens."""

    def __init__(self, inner: TransformersBackend, at: int, again: bool) -> None:
        self.inner, self.at, self.again = inner, at, again
        self.max_length = inner.max_length
        self._held: list[list[int]] = [[] for _ in inner.lengths]  # which the inner cache may hold a part of only
        self._second = [False for _ in inner.lengths]  # whether all of a row was read with the second frequencies

    @property
    def passes(self) -> int:
        """Forward passes so far."""
        return self.inner.passes

    @property
    def lengths(self) -> list[int]:
        return [len(held) for held in self._held]

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        rows = range(len(ids))
        cached = self.inner.lengths
        early: list[list[int]] = [[] for _ in rows]  # what is read with the first frequencies,
        late: list[list[int]] = [[] for _ in rows]  # and what with the second
        beyond, anew = [0 for _ in rows], [False for _ in rows]
        for b in rows:
            before, new = len(self._held[b]), list(ids[b])
            if not new:
                continue
            text = self._held[b] + new
            prompt = len(new) - max(0, logits[b] - 1) if before == 0 else 0
            if max(before, prompt) > self.at:
                late[b], beyond[b] = text[cached[b] :], len(new)
                self._second[b] |= prompt > self.at
            else:
                beyond[b] = max(0, len(text) - self.at)
                early[b] = text[cached[b] : self.at]
                if beyond[b] and self.again:
                    late[b], anew[b], self._second[b] = text, True, True
                    early[b] = early[b] if logits[b] > beyond[b] else []
                else:
                    late[b] = text[self.at :]
            self._held[b] = text
        ends = [min(n, most) for n, most in zip(logits, beyond, strict=True)]
        first = self._pass(early, [n - end for n, end in zip(logits, ends, strict=True)])
        self.inner.rollback([0 if new else n for new, n in zip(anew, self.inner.lengths, strict=True)])
        last = self._pass(late, ends)
        return [torch.cat([x for x in pair if len(x)] or [torch.empty(0)]) for pair in zip(first, last, strict=True)]

    def _pass(self, ids: list[list[int]], logits: list[int]) -> list[Tensor]:
        if not any(ids):
            return [torch.empty(0) for _ in ids]
        found = self.inner.forward(ids, [max(n, bool(new)) for n, new in zip(logits, ids, strict=True)])
        return [x[len(x) - n :] for x, n in zip(found, logits, strict=True)]

    def rollback(self, lengths: Sequence[int]) -> None:
        kept = []
        for b, (held, wanted) in enumerate(zip(self._held, lengths, strict=True)):
            if wanted < len(held):
                self._held[b] = held[:wanted]
                if self._second[b] and wanted <= self.at:
                    self._second[b], wanted = False, 0  # to be read again with the first frequencies
            kept.append(wanted)
        self.inner.rollback(kept)

    def select(self, rows: Sequence[int]) -> None:
        self._held, self._second = [self._held[b] for b in rows], [self._second[b] for b in rows]
        self.inner.select(rows)
