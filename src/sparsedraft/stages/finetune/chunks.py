"""The head and the loss for a few places at a time: logits over the whole vocabulary never exist for a whole row.

A loss over places is a sum over chunks of them. Each chunk's logits are made, and overwritten by their gradient, which
autograd takes for a part of them at a time; what stays is the gradient of the hidden states. Where the head is trained,
the gradient of the logits stays, too, in the dtype of the head: one product at the end costs less than a product and an
addition to a matrix of the head's size for each chunk.

The model's own forward pass does this, with a head that returns the loss in place of logits. So whatever wraps the
model (DDP, FSDP2, autocast) sees one forward pass with one output, and whole weights are there when they are needed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsedraft.stages.finetune.halves import arithmetic, half
from sparsedraft.text.bins import Bin
from sparsedraft.text.logits import outputs, outputs_of_text
from sparsedraft.writers.transformers.abilities import abilities

PLACES = 256  # of a chunk: fewer would read the head's weights more often than their products take
# Of these the logits that the loss looks at at once, 16 MB in float32: the C library gives larger pieces of memory back
# to the system each time, and new ones are cleared before they are used.
ENTRIES = 1 << 22

LossOf = Callable[[Tensor, slice], Tensor]  # of the logits [c, V] of a slice of the places: its part of the loss

LogitsOf = Callable[[slice], Tensor]  # of a slice of the places: their logits [c, V]


def summed(hidden: Tensor, weight: Tensor, bias: Tensor | None, loss_of: LossOf, places: int) -> Tensor:
    """Σ of `loss_of` over chunks of `places` places: hidden states [n, h], the head's weight [V, h] and bias [V].

    Exactly the loss of all places at once, and so is its gradient, which the forward pass takes. `loss_of` must use
    nothing else that has a gradient.
    """
    if torch.is_grad_enabled():
        return _Summed.apply(hidden, weight, bias, loss_of, places)
    parts = _parts(0, len(hidden), min(places, max(1, ENTRIES // len(weight))))
    return torch.stack([loss_of(F.linear(hidden[part], weight, bias), part) for part in parts]).sum()


def _parts(start: int, end: int, places: int) -> Iterator[slice]:
    return (slice(first, min(end, first + places)) for first in range(start, end, places))


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, loss_of: LossOf, places: int) -> Tensor:
        of_hidden, of_head = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        n, width = len(hidden), len(weight)
        d_hidden = torch.empty_like(hidden) if of_hidden else None
        memory = hidden.new_empty(n if of_head else min(n, places), width)  # of logits, and then their gradients
        losses = []
        for chunk in _parts(0, n, places):
            logits = memory[chunk] if of_head else memory[: chunk.stop - chunk.start]
            torch.mm(hidden[chunk], weight.t(), out=logits)
            if bias is not None:
                logits += bias
            for part in _parts(chunk.start, chunk.stop, max(1, ENTRIES // width)):
                some = logits[part.start - chunk.start : part.stop - chunk.start]
                with torch.enable_grad():
                    leaf = some.detach().requires_grad_()
                    loss = loss_of(leaf, part)
                    (gradient,) = torch.autograd.grad(loss, leaf)
                losses.append(loss.detach())
                some.copy_(gradient)
            if d_hidden is not None:
                torch.mm(logits, weight, out=d_hidden[chunk])
        ctx.save_for_backward(hidden, d_hidden, memory if of_head else None)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, d_hidden, d_logits = ctx.saved_tensors
        scale, (of_hidden, of_weight, of_bias) = gradients[0], ctx.needs_input_grad[:3]
        return (
            d_hidden * scale if of_hidden else None,
            d_logits.t() @ (hidden * scale) if of_weight else None,
            d_logits.sum(0) * scale if of_bias else None,
            None,
            None,
        )


@contextmanager
def _head_of(model: nn.Module, forward: Callable[[nn.Linear, Tensor], Tensor]) -> Iterator[None]:
    """Within it the head of `model` computes `forward` of itself and of the hidden states that it gets."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    head.forward = MethodType(forward, head)
    try:
        yield
    finally:
        del head.forward


def loss_in_chunks(
    model: nn.Module, row: Bin, loss_of: LossOf, hidden_states: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(Σ of `loss_of` over chunks of the row's places, the hidden states as `outputs` has them).

    A model that does something with its head's output (a cap, a scale) has its logits made at once.
    """
    inner: Any = getattr(model, "module", model)  # DDP's
    head = inner.get_output_embeddings()
    if not (type(head) is nn.Linear and abilities(inner).shows_head):
        logits, hidden = outputs(model, row, hidden_states)
        return loss_of(logits, slice(len(logits))), hidden

    def forward(head: nn.Linear, hidden: Tensor) -> Tensor:
        kind = hidden.device.type
        dtype = arithmetic(kind, head.weight)
        weight, bias = half(head.weight, dtype), None if head.bias is None else half(head.bias, dtype)
        with torch.autocast(kind, enabled=False):
            return summed(hidden.flatten(0, -2).to(dtype), weight, bias, loss_of, PLACES).view(1, 1, 1)

    with _head_of(inner, forward):
        loss, states = outputs(model, row, hidden_states)
    return loss.squeeze(), states


@torch.no_grad()
def logits_in_chunks(model: nn.Module, row: Bin, hidden_states: bool = False) -> tuple[LogitsOf, tuple[Tensor, ...]]:
    """(the logits of `model`, which reads no mask tokens, by slices of the row's places, its hidden states)."""
    reader: Any = model
    if not abilities(reader).shows_head:
        logits, states = outputs_of_text(model, row, hidden_states)
        return logits.__getitem__, states
    with _head_of(model, lambda head, hidden: hidden):
        hidden, states = outputs_of_text(model, row, hidden_states)
    head = reader.get_output_embeddings()
    return torch.no_grad()(lambda part: head(hidden[part])), states
