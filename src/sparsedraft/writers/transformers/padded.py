"""Many rows of many lengths decoded at once in one cache, finished rows refilled from the queue.

Rows are left-padded to share one KV cache. Whenever enough rows have finished, they are dropped, new ones are prefilled
together and joined on, and padding that no row needs any more is cut off.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.kvcache import keys_and_values, new_cache
from sparsedraft.writers.protocol.requests import ActiveRequest, Completion, Request, extend

REFILL = 0.25  # share of the rows that must be free before a prefill interrupts the others
PREFILL_TOKENS = 4096  # prefilled at once at most: bounds the activations


class _Batch:
    """The rows being decoded: their shared cache, its mask [B, L], and the last token of each."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.rows = model, list[ActiveRequest]()
        self.cache, self.mask = new_cache(), torch.empty(0, 0, dtype=torch.long, device=model.device)

    def admit(self, rows: Sequence[ActiveRequest]) -> Tensor:
        """Prefill `rows` together and join them on; return their next-token logits [b, V]."""
        width = max(len(row.request.prompt_ids) for row in rows)
        padded = [[0] * (width - len(r.request.prompt_ids)) + list(r.request.prompt_ids) for r in rows]
        lengths = torch.tensor([len(row.request.prompt_ids) for row in rows], device=self.model.device)
        ids = torch.tensor(padded, device=self.model.device)
        mask = (torch.arange(width, device=self.model.device) >= width - lengths[:, None]).long()
        cache = new_cache()
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._join(cache, mask)
        self.rows += rows
        return out.logits[:, -1]

    def _join(self, cache: Cache, mask: Tensor) -> None:
        """Put the new rows' cache below the old one's, both padded on the left to the longer of the two."""
        if not self.rows:
            self.cache, self.mask = cache, mask
            return
        width = max(self.mask.shape[1], mask.shape[1])
        joined = new_cache()
        for index, (old, new) in enumerate(zip(keys_and_values(self.cache), keys_and_values(cache), strict=True)):
            keys, values = (torch.cat([_pad(t, width, -2) for t in pair]) for pair in zip(old, new, strict=True))
            joined.update(keys, values, index)
        self.cache, self.mask = joined, torch.cat([_pad(self.mask, width, -1), _pad(mask, width, -1)])

    def drop_finished(self) -> None:
        """Remove finished rows, and the padding that only they needed."""
        stay = [i for i, row in enumerate(self.rows) if not row.finished]
        self.rows = [self.rows[i] for i in stay]
        if not stay:
            return
        self.mask = self.mask[stay]
        first = int(self.mask.argmax(dim=1).min())
        self.mask = self.mask[:, first:]
        kept = new_cache()
        for index, (keys, values) in enumerate(keys_and_values(self.cache)):
            kept.update(keys[stay, :, first:], values[stay, :, first:], index)
        self.cache = kept

    def step(self) -> Tensor:
        """Feed every row's last token; return the next-token logits [B, V]."""
        last = torch.tensor([[row.output.token_ids[-1]] for row in self.rows], device=self.model.device)
        position = self.mask.sum(-1, keepdim=True)
        self.mask = F.pad(self.mask, (0, 1), value=1)
        out = self.model(
            input_ids=last, attention_mask=self.mask, position_ids=position, cache=self.cache, use_cache=True
        )
        return out.logits[:, -1]


def _pad(tensor: Tensor, width: int, dim: int) -> Tensor:
    """Zeros on the left of `dim` (-1 or -2) up to `width`."""
    missing = width - tensor.shape[dim]
    return F.pad(tensor, (missing, 0) if dim == -1 else (0, 0, missing, 0))


def complete_padded(
    model: PreTrainedModel,
    requests: Sequence[Request],
    batch_size: int,
    sampling: Sampling,
    eos_ids: frozenset[int],
    top_k_logprobs: int,
) -> Iterator[Completion]:
    """Complete every request, `batch_size` rows at once, with a model that takes padded rows (see `Abilities.pads`)."""
    # Longest first: rows that start together are of like length, so little of a prefill is padding.
    queue = sorted(requests, key=lambda r: -len(r.prompt_ids))
    batch = _Batch(model)
    while queue or batch.rows:
        free = batch_size - len(batch.rows)
        if queue and free >= min(len(queue), max(1, round(REFILL * batch_size))):
            while queue and len(batch.rows) < batch_size:
                rows = [ActiveRequest.begin(queue.pop(0))]
                room = min(batch_size - len(batch.rows), PREFILL_TOKENS // max(1, len(rows[0].request.prompt_ids)))
                while queue and len(rows) < room:
                    rows.append(ActiveRequest.begin(queue.pop(0)))
                extend(rows, batch.admit(rows), sampling, eos_ids, top_k_logprobs)
        else:
            extend(batch.rows, batch.step(), sampling, eos_ids, top_k_logprobs)
        finished = [row.output for row in batch.rows if row.finished]
        if finished:
            batch.drop_finished()
            yield from finished
