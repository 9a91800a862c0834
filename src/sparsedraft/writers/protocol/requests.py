"""What a writer gets and what it writes; and how the next token of each row is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling, draw, penalised, probabilities


@dataclass(frozen=True)
class Request:
    """What to write: the prompt's token ids, the most tokens to write, and the seed of its random numbers.

    A server gets text instead: the conversation `messages`, to which it applies the chat template itself, or `raw`.
    """

    id: str
    prompt_ids: Sequence[int]
    max_new_tokens: int
    seed: int = 0
    messages: Sequence[dict[str, str]] | None = None
    raw: str | None = None


@dataclass
class Completion:
    """What a writer wrote for a request. `min_gap` is the smallest distance of the best logit to the second best.

    `text`: what a server wrote; `token_ids` are then its usual encoding, not the server's. `dropped`: why nothing was
    written.
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
class ActiveRequest:
    """A request under way, and its completion so far."""

    request: Request
    output: Completion
    generator: torch.Generator

    @classmethod
    def begin(cls, request: Request) -> "ActiveRequest":
        return cls(request, Completion(request.id), torch.Generator().manual_seed(request.seed))

    @property
    def ids(self) -> list[int]:
        """The prompt and what was written so far."""
        return [*self.request.prompt_ids, *self.output.token_ids]

    @property
    def finished(self) -> bool:
        done = len(self.output.token_ids) >= self.request.max_new_tokens
        return done or self.output.finish_reason == "eos"


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
    """Raise UserError where the vocabulary has fewer than k tokens."""
    if k > (vocabulary := model.get_output_embeddings().weight.shape[0]):
        raise UserError(f"--top-k-logprobs {k} is more than the vocabulary of {vocabulary}: lower it.")


def extend(rows: Sequence[ActiveRequest], logits: Tensor, sampling: Sampling, eos_ids: frozenset[int], k: int) -> None:
    """Append the next token to every row from its logits [B, V]; with k > 0 note the k likeliest tokens, too.

    FloatingPointError for NaN logits.
    """
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
