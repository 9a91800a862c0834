"""Bins with mask tokens behind the text: what a drafter is trained on that writes a whole draft in one pass.

PARD, An et al. 2025 (arXiv 2504.18583). From each place that a draft may start at, mask tokens go on: the one at depth
d stands d tokens further, and predicts the token behind its place. Each sees the text up to its start, and those of its
start before it. That is what the drafter reads when it drafts, for all starts in one pass.

Most of them are dropped (conditional drop of tokens, COD): of n starts, max(r^d, least) · n keep their mask token at
depth d, and of these only such that kept the one before, so that what a mask token sees is whole.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsedraft.text.bins import Bin
from sparsedraft.text.dropping import Dropping


@dataclass(frozen=True, kw_only=True)
class ParallelBin(Bin):
    """A bin of which all but the first `length` tokens are mask tokens; the first `places` places are the text's.

    `source` [n]: whose place of the text each place stands for, the same for the text's own. `visible` [1, 1, L, L]:
    what each token sees; bool, or what is added to the scores.
    """

    source: Tensor
    visible: Tensor
    length: int
    places: int

    def plain(self) -> Bin:
        """The bin without mask tokens."""
        n, parts = self.places, ("predict", "tokens", "topk_ids", "topk_logprobs", "soft")
        return Bin(
            self.ids[:, : self.length],
            self.positions[:, : self.length],
            **{name: getattr(self, name)[:n] for name in parts},
            own=self.own,
        )


def lay_out(
    row: Bin, mask_token: int, dropping: Dropping, generator: torch.Generator, additive: torch.dtype | None = None
) -> ParallelBin:
    """`row`, on the CPU, with the mask tokens that `generator` chooses; `additive`: the type of an additive mask."""
    starts, depths = _kept(row, dropping, generator)
    length, n = row.ids.shape[1], len(row.predict)
    source = torch.cat([torch.arange(n), starts + depths])
    behind = row.predict[starts]  # the last token of the text that each mask token sees
    positions = torch.cat([row.positions[0], row.positions[0, behind] + depths])[None]
    visible = _visible(row, starts, depths)
    if additive is not None:
        least = torch.finfo(additive).min
        visible = torch.zeros(visible.shape, dtype=additive).masked_fill(~visible, least)
    return ParallelBin(
        torch.cat([row.ids, torch.full((1, len(starts)), mask_token)], 1),
        positions,
        torch.cat([row.predict, torch.arange(length, length + len(starts))]),
        row.tokens[source],
        row.topk_ids[source],
        row.topk_logprobs[source],
        row.soft[source],
        row.own,
        source=source,
        visible=visible,
        length=length,
        places=n,
    )


def _samples(row: Bin) -> Tensor:
    """Which sample each token of the text belongs to."""
    return (row.positions[0] == 0).cumsum(0)


def _kept(row: Bin, dropping: Dropping, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(the place that each mask token starts from, its depth), depth by depth."""
    n, sample = len(row.predict), _samples(row)[row.predict]
    starts, depths, alive = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)], torch.arange(n)
    for depth in range(1, dropping.tokens):
        alive = alive[alive + depth < n]
        alive = alive[sample[alive + depth] == sample[alive]]  # the draft ends with the answer
        count = min(len(alive), max(1, int(n * dropping.share(depth))))
        alive = alive[torch.randperm(len(alive), generator=generator)[:count]].sort().values
        starts.append(alive)
        depths.append(torch.full_like(alive, depth))
    return torch.cat(starts), torch.cat(depths)


def _visible(row: Bin, starts: Tensor, depths: Tensor) -> Tensor:
    """bool [1, 1, L, L]."""
    length = row.ids.shape[1]
    sample, place = _samples(row), torch.arange(length)
    ends = torch.cat([place, row.predict[starts]])  # the last token of the text that each token sees
    of = torch.cat([sample, sample[row.predict[starts]]])
    text = (of[:, None] == sample[None]) & (place[None] <= ends[:, None])
    start, depth = torch.cat([torch.full_like(place, -1), starts]), torch.cat([torch.zeros_like(place), depths])
    masks = (start[:, None] == starts[None]) & (depths[None] <= depth[:, None])
    return torch.cat([text, masks], 1)[None, None]
