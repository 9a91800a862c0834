"""Texts that have to follow a grammar: which tokens may come next.

The mask is put on the target's logits when it verifies, row i after the first i drafted tokens, and on the drafter's as
it drafts. The rules of acceptance then see two distributions over the same tokens, so the text has exactly the target's
masked distribution, and no draft is lost to a token that the grammar forbids.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Grammar(Protocol):
    """The grammar of one text, at most one token of which is decided at a time."""

    def fault(self, written: Sequence[int]) -> str:
        """Why the answer `written` could not go on, and so ended; "" where all is well."""
        ...

    def allowed(self, written: Sequence[int]) -> Tensor | None:
        """The mask [V] (bool, on the CPU) of the tokens that may follow the answer's first tokens `written`.

        None: any may, because `written` has ended. A token that ends a text may come where the grammar accepts it.
        """
        ...


def permitted(logits: Tensor, grammar: Grammar | None, written: Sequence[int], drafted: Sequence[int] = ()) -> Tensor:
    """`logits` [n, V] with -inf for what the grammar forbids; row i follows `written` and the first i of `drafted`.

    Rows that cannot be reached, behind a drafted token that is forbidden or ends the text, stay as they are.
    """
    if grammar is None:
        return logits
    masks: list[Tensor] = []
    path = [*written]
    for i in range(len(logits)):
        mask = grammar.allowed(path)
        if mask is None:
            break
        masks.append(mask)
        if i == len(drafted) or not mask[drafted[i]]:
            break
        path.append(drafted[i])
    if not masks:
        return logits
    forbidden = torch.stack(masks).logical_not_().to(logits.device)
    masked = logits.clone()
    masked[: len(masks)].masked_fill_(forbidden, -torch.inf)
    return masked


def within(grammar: Grammar | None, written: Sequence[int], drafted: list[int]) -> list[int]:
    """`drafted` up to the first token that the grammar forbids; nothing is drafted behind the end of a text."""
    if grammar is None:
        return drafted
    path = [*written]
    for i, token in enumerate(drafted):
        mask = grammar.allowed(path)
        if mask is None or not mask[token]:
            return drafted[:i]
        path.append(token)
    return drafted
