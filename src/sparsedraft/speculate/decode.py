"""The speculative decoding loop (Leviathan et al. 2023; Chen et al. 2023), with caches that are rolled back."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsedraft.errors import UserError
from sparsedraft.speculate.accept import accept_greedy, accept_sampled
from sparsedraft.speculate.backend import Backend
from sparsedraft.speculate.sampling import Sampling, draw, probabilities


@dataclass(frozen=True)
class Step:
    """One verification pass: `emitted` is the accepted drafts and the target's own token, cut at the sequence's end."""

    drafted: list[int]
    accepted: int  # drafted tokens that were emitted
    emitted: list[int]


@dataclass
class Generation:
    """A whole answer; `finish_reason` is "eos", "length" (max_new_tokens) or "context" (the target's is full)."""

    tokens: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    finish_reason: str = "length"


def speculate(
    target: Backend,
    drafter: Backend | None,
    prompt_ids: list[int],
    *,
    k: int,
    max_new_tokens: int,
    sampling: Sampling,
    eos_ids: frozenset[int],
    seed: int = 0,
) -> Iterator[Step]:
    """Decode with up to `k` drafts a step, yielding each step as it is done. Fresh backends; lossless.

    A step with r tokens to go drafts at most r - 1, since the target adds one of its own. No drafter, or k = 0, is
    plain decoding: every step emits one token. A drafter whose context is full drafts no more. Raises UserError for a
    prompt that is empty or fills the target's context, FloatingPointError for NaN logits.
    """
    room = _room(target, prompt_ids, max_new_tokens)
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt_ids)
    end = len(tokens) + room
    while len(tokens) < end:
        drafted, q = _draft(drafter, tokens, min(k, end - len(tokens) - 1), sampling, generator)
        n = len(drafted)
        # Both caches hold a prefix of `tokens`; the target reads what it has not read, and the drafts, in one pass.
        logits = _sound(target.forward(tokens[target.length :] + drafted, n + 1), "target", len(tokens))
        if sampling.greedy:
            choices = logits.argmax(-1).cpu()
            accepted = accept_greedy(choices, torch.tensor(drafted))
            token = int(choices[accepted])
        else:
            p = probabilities(logits, sampling)
            accepted, token = accept_sampled(p, q, torch.tensor(drafted), generator)
        emitted = [*drafted[:accepted], token]
        stop = next((i for i, t in enumerate(emitted) if t in eos_ids), None)
        if stop is not None:
            emitted = emitted[: stop + 1]
        tokens += emitted
        target.rollback(len(tokens) - 1)
        if drafter is not None:
            drafter.rollback(min(drafter.length, len(tokens) - 1))
        yield Step(drafted, min(accepted, len(emitted)), emitted)
        if stop is not None:
            return


def _room(target: Backend, prompt_ids: list[int], max_new_tokens: int) -> int:
    """Tokens that can still be written."""
    if not prompt_ids:
        raise UserError("the prompt is empty: give at least one token.")
    if target.max_length is None:
        return max_new_tokens
    if len(prompt_ids) >= target.max_length:
        raise UserError(
            f"the prompt has {len(prompt_ids)} tokens, which fill the target's context of {target.max_length}: "
            "shorten it."
        )
    return min(max_new_tokens, target.max_length - len(prompt_ids))


def _draft(
    drafter: Backend | None, tokens: list[int], n: int, sampling: Sampling, generator: torch.Generator
) -> tuple[list[int], Tensor]:
    """Up to n tokens from the drafter after `tokens`, and the distributions q [n, V] that they were drawn from."""
    drafted: list[int] = []
    distributions: list[Tensor] = []
    if drafter is None:
        return drafted, torch.empty(0)
    if drafter.max_length is not None:
        n = min(n, drafter.max_length - len(tokens))
    for _ in range(n):
        unread = tokens[drafter.length :] if not drafted else drafted[-1:]
        logits = _sound(drafter.forward(unread, 1)[0], "drafter", len(tokens))
        if sampling.greedy:
            drafted.append(int(logits.argmax()))
        else:
            distributions.append(probabilities(logits, sampling))
            drafted.append(draw(distributions[-1], generator))
    return drafted, torch.stack(distributions) if distributions else torch.empty(0)


def _sound(logits: Tensor, who: str, position: int) -> Tensor:
    """`logits`, unless there is a NaN among them."""
    if bool(torch.isnan(logits).any()):
        raise FloatingPointError(
            f"the {who}'s logits after {position} tokens hold NaN: try float32, or check the weights"
        )
    return logits


def generate(
    target: Backend,
    drafter: Backend | None,
    prompt_ids: list[int],
    *,
    k: int,
    max_new_tokens: int,
    sampling: Sampling,
    eos_ids: frozenset[int],
    seed: int = 0,
) -> Generation:
    """All of `speculate` at once."""
    made = Generation()
    for step in speculate(
        target,
        drafter,
        prompt_ids,
        k=k,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        eos_ids=eos_ids,
        seed=seed,
    ):
        made.steps.append(step)
        made.tokens += step.emitted
    if made.tokens and made.tokens[-1] in eos_ids:
        made.finish_reason = "eos"
    elif len(made.tokens) < max_new_tokens:
        made.finish_reason = "context"
    return made
