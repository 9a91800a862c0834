"""Weights in 16 bits for the products of mixed precision, made once a step in place of once a row; and their gradients.

Autocast casts every weight in every forward pass, and does not keep a frozen one. Here a weight's copy is made again
only after the weight has changed: torch counts the writes to a tensor. Copies stay where they are in memory, as fresh
pages cost more than what is written to them.

A process that trains alone also adds gradients up by itself: in 16 bits as they come, those of an embedding row by row,
and into the memory of the last step's. Autograd would cast them, make a matrix of the embedding's size for the rows of
a text, and ask the system for new pages.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from sparsedraft.base import allocator

_copies = WeakTensorKeyDictionary()  # by weight: (its version, the copy)
_adding = WeakTensorKeyDictionary()  # by weight whose gradients are added up here: memory for the next step's, or None


def half(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in `dtype`; gradients go through. It is good until the weight changes: use it in one step."""
    if weight.dtype != dtype:
        return _Half.apply(weight, _copy(weight, dtype))
    return _Half.apply(weight, weight.detach()) if weight in _adding else weight


def _copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    version, copy = _copies.get(weight, (-1, None))
    if copy is None or copy.dtype != dtype or copy.device != weight.device:
        copy, version = torch.empty_like(weight, dtype=dtype, requires_grad=False), -1
    if version != weight._version:
        copy.copy_(weight.detach())
        _copies[weight] = weight._version, copy
    return copy


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        ctx.weight = weight
        return copy.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (gradient,), weight = gradients, ctx.weight
        if weight not in _adding:
            return gradient.to(weight.dtype), None
        if weight.grad is not None:
            weight.grad.add_(gradient)
        elif (memory := _memory(weight)) is not None:
            weight.grad = memory.copy_(gradient)
        else:
            weight.grad = gradient.to(weight.dtype)
        return None, None


def _memory(weight: Tensor) -> Tensor | None:
    """What is kept for a gradient of `weight`, which is no longer kept then."""
    memory: Tensor | None = _adding.get(weight)
    _adding[weight] = None
    return memory


class _Rows(torch.autograd.Function):
    """An embedding whose gradient is added to `weight.grad` row by row."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, unused: int | None) -> Tensor:
        ctx.weight, ctx.unused = weight, unused
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        (ids,), weight = ctx.saved_tensors, ctx.weight
        gradient = gradients[0].to(weight.dtype)
        if ctx.unused is not None:
            gradient = gradient.masked_fill((ids == ctx.unused)[..., None], 0)
        if weight.grad is None:
            memory = _memory(weight)
            weight.grad = torch.zeros_like(weight) if memory is None else memory.zero_()
        weight.grad.index_add_(0, ids.flatten(), gradient.flatten(0, -2))
        return None, None, None


def arithmetic(kind: str, weight: Tensor) -> torch.dtype:
    """What autocast on a device of `kind` has products in; without it, the dtype of `weight`."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def install(model: nn.Module, mixed: bool, adds: bool) -> None:
    """From now on the linears of `model` use such copies, if training is `mixed`, but for those with their own way.

    With `adds` the gradients of these linears, and of head and embedding in any case, are added up without autograd's
    knowledge: not where something waits for them, as DDP does. Not for a sharded model, whose weights FSDP gathers in
    16 bits already.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
    linears = [m for m in model.modules() if type(m) is nn.Linear and m is not head and "forward" not in m.__dict__]
    for linear in linears if mixed else ():
        linear.forward = MethodType(_linear, linear)  # type: ignore[method-assign]
    for parameter in model.parameters():
        _adding.pop(parameter, None)
    if not adds:
        return
    plain = type(embedding) is nn.Embedding and not (embedding.max_norm or embedding.scale_grad_by_freq)
    if plain and embedding.weight.requires_grad:
        embedding.forward = MethodType(_embedding, embedding)
    for module in (*(linears if mixed else ()), head, *([embedding] if plain else [])):
        _adding.update({p: None for p in module.parameters(recurse=False) if p.requires_grad})


def _linear(self: nn.Linear, x: Tensor) -> Tensor:
    dtype = arithmetic(x.device.type, self.weight)
    return F.linear(x, half(self.weight, dtype), None if self.bias is None else half(self.bias, dtype))


def _embedding(self: nn.Embedding, ids: Tensor) -> Tensor:
    return _Rows.apply(self.weight, ids, self.padding_idx)


def put_by(weight: Tensor) -> None:
    """Keep the memory of the gradient of `weight` for the next step, if it is one that is added up here."""
    if weight.grad is not None and weight in _adding:
        _adding[weight] = weight.grad
        weight.grad = None


def release(model: nn.Module) -> None:
    """Give back the memory of copies and of gradients that are put by, until they are needed again."""
    for parameter in model.parameters():
        _copies.pop(parameter, None)
        if parameter in _adding:
            _adding[parameter] = None
    allocator.trim()  # rows of many lengths leave gaps
