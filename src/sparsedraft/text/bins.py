"""Bins: rows of many samples laid end to end, without padding; no sample attends to another.

Each sample has positions from 0. transformers builds the block-diagonal causal mask from these position ids.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsedraft.text.sample import Sample


@dataclass(frozen=True)
class Bin:
    """A row of samples of length L: `ids` [1, L], `positions` [1, L], and the n places that predict an answer token.

    `predict` [n] indexes the row at the token before each answer token; `tokens` [n] are those answer tokens, and
    `topk_ids`, `topk_logprobs` [n, k] the target's likeliest ones where `soft` [n] says that they are known. `own`: the
    drafter that is being trained wrote the answers, not the target.
    """

    ids: Tensor
    positions: Tensor
    predict: Tensor
    tokens: Tensor
    topk_ids: Tensor
    topk_logprobs: Tensor
    soft: Tensor
    own: bool = False

    def to(self, device: torch.device) -> "Bin":
        """The same bin on `device`."""
        tensors: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device) for name, value in tensors.items()})


def truncate(samples: Sequence[Sample], length: int) -> tuple[list[Sample], int]:
    """(samples cut to `length` tokens, how many were dropped because their prompt alone fills it)."""
    short = [s for s in samples if len(s.prompt_ids) < length and len(s.answer_ids) > 0]
    return [_cut(s, length - len(s.prompt_ids)) for s in short], len(samples) - len(short)


def _cut(sample: Sample, n: int) -> Sample:
    """The first n answer tokens only."""
    if len(sample.answer_ids) <= n:
        return sample
    soft = sample.topk_ids is not None and sample.topk_logprobs is not None
    return replace(
        sample,
        answer_ids=sample.answer_ids[:n],
        topk_ids=sample.topk_ids[:n] if soft else None,  # type: ignore[index]
        topk_logprobs=sample.topk_logprobs[:n] if soft else None,  # type: ignore[index]
    )


def first_fit(lengths: Sequence[int], length: int) -> list[list[int]]:
    """First-fit decreasing: indices of samples grouped so that each group's lengths add up to at most `length`.

    Within 22 % of the least possible number of groups (Johnson 1973), and far nearer on many short samples.
    """
    assign: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        where = next((g for g, free in enumerate(room) if free >= lengths[index]), None)
        if where is None:
            assign.append([])
            room.append(length)
            where = len(assign) - 1
        assign[where].append(index)
        room[where] -= lengths[index]
    return assign


def assign(samples: Sequence[Sample], length: int, packable: bool) -> list[list[int]]:
    """Indices of the samples of each bin of at most `length` tokens; one a bin for a model that is not `packable`."""
    return first_fit([len(s) if packable else length for s in samples], length)


def fill(samples: Sequence[Sample], own: bool = False) -> Bin:
    """The bin with `samples` laid end to end; `own` as in Bin."""
    ids: list[int] = []
    positions: list[int] = []
    predict: list[int] = []
    tokens: list[int] = []
    for sample in samples:
        first = len(ids) + len(sample.prompt_ids)
        predict += range(first - 1, first - 1 + len(sample.answer_ids))
        tokens += sample.answer_ids
        ids += [*sample.prompt_ids, *sample.answer_ids]
        positions += range(len(sample))
    width = min((s.topk_ids.shape[1] for s in samples if s.topk_ids is not None and s.soft), default=0)
    empty = [
        np.zeros((len(s.answer_ids), width)) for s in samples
    ]  # stands for soft labels that are not known, and is not read
    pairs = list(zip(samples, empty, strict=True))
    topk_ids = np.concatenate([s.topk_ids[:, :width] if s.topk_ids is not None and s.soft else e for s, e in pairs])
    topk_logprobs = np.concatenate(
        [s.topk_logprobs[:, :width] if s.topk_logprobs is not None and s.soft else e for s, e in pairs]
    )
    soft = np.concatenate([np.full(len(s.answer_ids), s.soft) for s in samples])
    return Bin(
        torch.tensor([ids]),
        torch.tensor([positions]),
        torch.tensor(predict),
        torch.tensor(tokens),
        torch.from_numpy(topk_ids.astype(np.int64)),
        torch.from_numpy(topk_logprobs.astype(np.float32)),
        torch.from_numpy(soft),
        own,
    )


def samples_in(row: Bin) -> list[Sample]:
    """The samples of a bin, without their ids and soft labels."""
    ids, n = row.ids[0].tolist(), row.ids.shape[1]
    starts = (row.positions[0] == 0).nonzero().squeeze(1).tolist()
    firsts = row.predict[torch.searchsorted(row.predict, torch.tensor(starts, device=row.predict.device))].tolist()
    return [
        Sample("", ids[start : first + 1], ids[first + 1 : end])
        for start, first, end in zip(starts, firsts, [*starts[1:], n], strict=True)
    ]


def steps(
    samples: Sequence[Sample], length: int, rows_per_step: int, seed: int, packable: bool = True
) -> Iterator[list[Bin]]:
    """Endless optimizer steps of `rows_per_step` bins; the seed decides how each epoch is shuffled and binned."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[Bin] = []
    while True:
        order = torch.randperm(len(samples), generator=generator).tolist()
        shuffled = [samples[i] for i in order]
        rows = assign(shuffled, length, packable)
        for row in torch.randperm(len(rows), generator=generator).tolist():  # without a shuffle long samples come first
            waiting.append(fill([shuffled[i] for i in sorted(rows[row])]))
            if len(waiting) == rows_per_step:
                yield waiting
                waiting = []
