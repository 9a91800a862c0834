"""Attention masks, bool [rows, 1, n, slots], for rows of different lengths and for draft trees.

A slot of a RaggedLayer is a position. Only the nodes of a tree lie one behind the other, whatever their positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def ragged(starts: Sequence[int], counts: Sequence[int], window: int | None = None) -> Tensor:
    """New token j of row b lies in slot starts[b] + j and sees the slots up to its own (the last `window` of them).

    Padding follows a row's `counts[b]` tokens. It sees what the last token sees, so that no softmax is empty.
    """
    n = max(counts)
    width = max(s + c for s, c in zip(starts, counts, strict=True))
    first, count = torch.tensor([*starts])[:, None], torch.tensor([*counts])[:, None]
    place = (first + torch.minimum(torch.arange(n)[None], count - 1)).clamp(min=0)[:, :, None]
    slots = torch.arange(width)[None, None]
    seen = slots <= place
    if window is not None:
        seen &= slots > place - window
    return seen[:, None]


def tree(start: int, parents: Sequence[int], new: int, window: int | None = None) -> Tensor:
    """For the last `new` nodes of a tree: node i lies in slot start + i, at position start + its depth; it sees the
    prefix, its ancestors and itself.

    `parents[i]` < i is the node above, -1 for one that follows the prefix directly.
    """
    n = len(parents)
    seen = torch.zeros(n, start + n, dtype=torch.bool)
    seen[:, :start] = True
    for i, parent in enumerate(parents):
        if parent >= 0:
            seen[i] = seen[parent]
        seen[i, start + i] = True
    if window is not None:
        positions = torch.cat([torch.arange(start), torch.tensor(depths(parents)) + start])
        seen &= positions[None] > positions[start:, None] - window
    return seen[None, None, n - new :]


def depths(parents: Sequence[int]) -> list[int]:
    """How many nodes lie above each node."""
    found: list[int] = []
    for parent in parents:
        found.append(0 if parent < 0 else found[parent] + 1)
    return found


def windows(model: nn.Module) -> tuple[bool, int | None]:
    """(whether some layers see everything and some a window, the window in tokens or None)."""
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if kinds and "sliding_attention" not in kinds:
        window = None
    return bool(kinds) and window is not None, window


def fitted(model: nn.Module, full: Tensor, windowed: Tensor | None) -> Tensor | dict[str, Tensor]:
    """The masks in the form that `model` reads: one, or one for each kind of layer; additive for eager attention."""

    def form(mask: Tensor) -> Tensor:
        mask = mask.to(model.device)  # type: ignore[arg-type]
        if model.config._attn_implementation != "eager":  # type: ignore[union-attr]
            return mask
        least = torch.finfo(model.dtype).min  # type: ignore[call-overload]
        return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(~mask, least)  # type: ignore[call-overload]

    mixed, _ = windows(model)
    if windowed is None:
        return form(full)
    return {"full_attention": form(full), "sliding_attention": form(windowed)} if mixed else form(windowed)
