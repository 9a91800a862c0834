"""Whole answers by a transformers model: many rows at once where its family can do that, else one after the other."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.decoder import context_length, embedding_rows
from sparsedraft.writers.protocol.requests import ActiveRequest, Completion, Request, check_fits, check_top_k, extend
from sparsedraft.writers.transformers.abilities import abilities
from sparsedraft.writers.transformers.alone import AloneBackend
from sparsedraft.writers.transformers.padded import complete_padded
from sparsedraft.writers.transformers.switching import switch_of


@torch.no_grad()  # not inference_mode: weights that FSDP2 gathers in it could not be trained with afterwards
def complete_all(
    model: PreTrainedModel,
    requests: Sequence[Request],
    *,
    batch_size: int,
    sampling: Sampling,
    eos_ids: frozenset[int],
    top_k_logprobs: int = 0,
) -> Iterator[Completion]:
    """Complete every request, `batch_size` rows at once; yields each completion as it is finished.

    With `top_k_logprobs` k > 0, every written token comes with the k likeliest ids and their log-probabilities: those
    of the model itself, before temperature and the like. Raises UserError for a prompt that does not fit the context,
    FloatingPointError where logits are NaN.
    """
    check_fits(context_length(model), embedding_rows(model), requests)
    check_top_k(model, top_k_logprobs)
    how = (sampling, eos_ids, top_k_logprobs)
    groups, single = _grouped(model, requests) if abilities(model).pads else ([], requests)
    for group in groups:
        yield from complete_padded(model, group, batch_size, *how)
    for request in single:
        yield _alone(model, request, *how)


def _grouped(model: PreTrainedModel, requests: Sequence[Request]) -> tuple[list[list[Request]], list[Request]]:
    """(groups of requests whose rows can share passes, requests that share none).

    All rows of a pass have the same rotary frequencies. Where these change at a length, rows that stay below it share
    passes, and rows that begin beyond it do.
    """
    at = switch_of(model)
    if at is None:
        return [list(requests)], []
    below: list[Request] = []
    beyond: list[Request] = []
    across: list[Request] = []
    for request in requests:
        ends = len(request.prompt_ids) + request.max_new_tokens - 1  # the last token is never read
        (below if ends <= at else beyond if len(request.prompt_ids) > at else across).append(request)
    return [below, beyond], across


def _alone(
    model: PreTrainedModel, request: Request, sampling: Sampling, eos_ids: frozenset[int], top_k_logprobs: int
) -> Completion:
    """One completion as transformers itself writes it."""
    backend, row, new = AloneBackend(model), ActiveRequest.begin(request), request.prompt_ids
    while not row.finished:
        extend([row], backend.forward([new], [1])[0], sampling, eos_ids, top_k_logprobs)
        new = row.output.token_ids[-1:]
    return row.output
