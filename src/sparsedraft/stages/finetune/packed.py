"""Attention over a packed row text by text: a row's texts do not see each other, so most of its scores are never used.

Given a mask, torch computes all L² scores of a row of L tokens on a CPU, and their gradients. A row of texts of n
tokens each needs n / L of these, and each text alone needs no mask, as it is causal.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FLOATS = 200  # tokens of a text below which torch's gradients take longer in 16 bits than in float32

Texts = list[tuple[int, int]]  # where each text of a row begins and ends


def texts_of(mask: Tensor) -> Texts | None:
    """The texts of a row whose `mask` [1, 1, L, L] (bool: what each token sees) is causal in each; None for another."""
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[:2] != (1, 1) or mask.shape[2] != mask.shape[3]:
        return None
    seen = mask[0, 0]
    length = len(seen)
    first = seen.byte().argmax(-1)  # the first token that each one sees
    place = torch.arange(length, device=mask.device)
    starts = (first == place).nonzero().flatten().tolist()
    expected = (place[None] <= place[:, None]) & (place[None] >= first[:, None])
    begun = torch.cummax(torch.where(first == place, place, 0), 0).values  # of the text that each token is in
    if not starts or starts[0] != 0 or not torch.equal(begun, first) or not torch.equal(seen, expected):
        return None
    return [*pairwise([*starts, length])]


@contextmanager
def text_by_text() -> Iterator[None]:
    """Within it, models with `sdpa` attention on a CPU compute packed rows so; whatever has another mask is as before.

    The mask itself decides, layer by layer: windows and mask tokens are other masks.
    """
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    last: tuple[weakref.ref[Tensor], Texts | None] | None = None

    def known(mask: Tensor) -> Texts | None:
        nonlocal last
        if last is None or last[0]() is not mask:  # all layers have the same one
            last = weakref.ref(mask), texts_of(mask)
        return last[1]

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: Any
    ) -> tuple[Tensor, Tensor | None]:
        texts = None
        if attention_mask is not None and query.device.type == "cpu" and how.get("position_bias") is None:
            texts = known(attention_mask)
        if texts is None:
            return plain(module, query, key, value, attention_mask, **how)
        how["is_causal"] = True
        parts, lengths = [], [end - start for start, end in texts]
        for of_text in zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True):
            if of_text[0].shape[2] < FLOATS and value.element_size() < 4:
                of_text = tuple(x.float() for x in of_text)
            parts.append(plain(module, *of_text, None, **how)[0].to(value.dtype))
        return torch.cat(parts, 1), None

    ALL_ATTENTION_FUNCTIONS["sdpa"] = forward
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = plain
