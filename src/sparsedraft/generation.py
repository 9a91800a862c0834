"""Batched generation: rows of many lengths decoded at once, finished rows refilled from the queue.

Rows are left-padded to share one KV cache. Whenever enough rows have finished, they are dropped, new ones are prefilled
together and joined on, and padding that no row needs any more is cut off.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from sparsedraft.decoder import context_length, embedding_rows
from sparsedraft.errors import UserError
from sparsedraft.kvcache import held, new_cache
from sparsedraft.speculate.sampling import Sampling, draw, penalised, probabilities

REFILL = 0.25  # share of the rows that must be free before a prefill interrupts the others
PREFILL_TOKENS = 4096  # prefilled at once at most: bounds the activations


@dataclass(frozen=True)
class Request:
    """One row to generate: token ids, the most tokens to write, and the seed of its own randomness.

    A server gets text instead: the conversation `messages`, to which it applies the chat template itself, or `raw`.
    """

    id: str
    prompt_ids: Sequence[int]
    max_new_tokens: int
    seed: int = 0
    messages: Sequence[dict[str, str]] | None = None
    raw: str | None = None


@dataclass
class Output:
    """What was written. `min_gap` is the smallest lead of the best logit over the next on the way.

    `text`: a server's own words, of which `token_ids` are only the usual spelling. `dropped`: why there is no answer.
    """

    id: str
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    min_gap: float = float("inf")
    topk_ids: list[list[int]] = field(default_factory=list)
    topk_logprobs: list[list[float]] = field(default_factory=list)
    text: str | None = None
    dropped: str = ""


@dataclass
class Written:
    """A row under way."""

    request: Request
    output: Output
    generator: torch.Generator

    @classmethod
    def begin(cls, request: Request) -> "Written":
        return cls(request, Output(request.id), torch.Generator().manual_seed(request.seed))

    @property
    def ids(self) -> list[int]:
        """Its prompt and what was written."""
        return [*self.request.prompt_ids, *self.output.token_ids]

    @property
    def finished(self) -> bool:
        done = len(self.output.token_ids) >= self.request.max_new_tokens
        return done or self.output.finish_reason == "eos"


class _Batch:
    """The rows being decoded: their shared cache, its mask [B, L], and the last token of each."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.rows = model, list[Written]()
        self.cache, self.mask = new_cache(), torch.empty(0, 0, dtype=torch.long, device=model.device)

    def admit(self, rows: Sequence[Written]) -> Tensor:
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
        for index, (old, new) in enumerate(zip(held(self.cache), held(cache), strict=True)):
            keys, values = (torch.cat([_pad(t, width, -2) for t in pair]) for pair in zip(old, new, strict=True))
            joined.update(keys, values, index)
        self.cache, self.mask = joined, torch.cat([_pad(self.mask, width, -1), _pad(mask, width, -1)])

    def drop_finished(self) -> None:
        """Forget finished rows, and the padding that only they needed."""
        stay = [i for i, row in enumerate(self.rows) if not row.finished]
        self.rows = [self.rows[i] for i in stay]
        if not stay:
            return
        self.mask = self.mask[stay]
        first = int(self.mask.argmax(dim=1).min())
        self.mask = self.mask[:, first:]
        kept = new_cache()
        for index, (keys, values) in enumerate(held(self.cache)):
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


def check_fits(context: int | None, rows: int, requests: Sequence[Request]) -> None:
    """Raise UserError naming the first request that, fully answered, would exceed the model's `context`, or that holds
    tokens which its embedding of so many `rows` does not have."""
    for request in requests:
        if (highest := max(request.prompt_ids, default=0)) >= rows:
            raise UserError(
                f"prompt {request.id} holds the token {highest}, and the model's embedding has {rows} rows: "
                "its tokenizer is another model's."
            )
        if context is not None and len(request.prompt_ids) + request.max_new_tokens > context:
            raise UserError(
                f"prompt {request.id} has {len(request.prompt_ids)} tokens, which with {request.max_new_tokens} "
                f"new ones exceed the context of {context}: shorten it, or lower --max-new-tokens."
            )


def check_top_k(model: PreTrainedModel, k: int) -> None:
    """Raise UserError for more likeliest tokens than there are."""
    if k > (vocabulary := model.get_output_embeddings().weight.shape[0]):
        raise UserError(f"--top-k-logprobs {k} is more than the vocabulary of {vocabulary}: lower it.")


@torch.no_grad()  # not inference_mode: weights that FSDP2 gathers in it could not be trained with afterwards
def generate_batch(
    model: PreTrainedModel,
    requests: Sequence[Request],
    *,
    batch_size: int,
    sampling: Sampling,
    eos_ids: frozenset[int],
    top_k_logprobs: int = 0,
) -> Iterator[Output]:
    """Answer every request, `batch_size` rows at once; yields each output as it finishes.

    With `top_k_logprobs` k > 0, every written token comes with the k likeliest ids and their log-probabilities (of the
    model itself, before temperature and the like). Raises UserError for a prompt that does not fit the context,
    FloatingPointError where logits are NaN.
    """
    check_fits(context_length(model), embedding_rows(model), requests)
    check_top_k(model, top_k_logprobs)
    # Longest first: rows that start together are of like length, so little of a prefill is padding.
    queue = sorted(requests, key=lambda r: -len(r.prompt_ids))
    batch = _Batch(model)
    while queue or batch.rows:
        free = batch_size - len(batch.rows)
        if queue and free >= min(len(queue), max(1, round(REFILL * batch_size))):
            while queue and len(batch.rows) < batch_size:
                rows = [Written.begin(queue.pop(0))]
                room = min(batch_size - len(batch.rows), PREFILL_TOKENS // max(1, len(rows[0].request.prompt_ids)))
                while queue and len(rows) < room:
                    rows.append(Written.begin(queue.pop(0)))
                extend(rows, batch.admit(rows), sampling, eos_ids, top_k_logprobs)
        else:
            extend(batch.rows, batch.step(), sampling, eos_ids, top_k_logprobs)
        finished = [row.output for row in batch.rows if row.finished]
        if finished:
            batch.drop_finished()
            yield from finished


def extend(rows: Sequence[Written], logits: Tensor, sampling: Sampling, eos_ids: frozenset[int], k: int) -> None:
    """Write the next token of every row from its logits [B, V]; with k > 0 keep the k likeliest, too."""
    logits = logits.float()
    if sampling.repetition_penalty != 1:
        seen = [row.ids for row in rows]
        logits = torch.cat([penalised(x[None], sampling, ids) for x, ids in zip(logits, seen, strict=True)])
    best = logits.topk(max(2, k), dim=-1)
    if bool(torch.isnan(best.values).any()):
        row = rows[int(torch.isnan(best.values).any(-1).nonzero()[0])]
        raise FloatingPointError(f"the logits of prompt {row.request.id} hold NaN: try float32, or check the weights")
    gaps = (best.values[:, 0] - best.values[:, 1]).tolist()
    if sampling.greedy:
        tokens = best.indices[:, 0].tolist()
    else:
        drawn = zip(probabilities(logits, sampling), rows, strict=True)
        tokens = [draw(distribution, row.generator) for distribution, row in drawn]
    if k:
        logprobs = (best.values[:, :k] - logits.logsumexp(-1, keepdim=True)).tolist()
        ids = best.indices[:, :k].tolist()
    for i, row in enumerate(rows):
        row.output.token_ids.append(tokens[i])
        row.output.min_gap = min(row.output.min_gap, gaps[i])
        if tokens[i] in eos_ids:
            row.output.finish_reason = "eos"
        if k:
            row.output.topk_ids.append(ids[i])
            row.output.topk_logprobs.append(logprobs[i])
