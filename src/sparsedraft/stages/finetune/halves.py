"""Weights in 16 bits for the products of mixed precision, made once a step in place of once a row.

Autocast casts every weight in every forward pass, and does not keep a frozen one. Here a weight's copy is made again
only after the weight has changed: torch counts the writes to a tensor. Copies stay where they are in memory, as fresh
pages cost more than what is written to them.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_copies = WeakTensorKeyDictionary()  # by weight: (its version, the copy)


def half(weight: Tensor, dtype: torch.dtype, adds: bool = False) -> Tensor:
    """`weight` in `dtype`; gradients go through. It is good until the weight changes: use it in one step.

    With `adds` a gradient is added to that of an earlier row as it is, not cast before. Then autograd is not told, so
    not for a weight whose gradients something waits for, as DDP does.
    """
    return weight if weight.dtype == dtype else _Half.apply(weight, _copy(weight, dtype), adds)


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
    def forward(ctx: Any, weight: Tensor, copy: Tensor, adds: bool) -> Tensor:
        ctx.weight, ctx.adds = weight, adds
        return copy.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        earlier = ctx.weight.grad
        if ctx.adds and earlier is not None:
            earlier.add_(gradients[0])
            return None, None, None
        return gradients[0].to(ctx.weight.dtype), None, None


def arithmetic(kind: str, weight: Tensor) -> torch.dtype:
    """What autocast on a device of `kind` has products in; without it, the dtype of `weight`."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def install(model: nn.Module, adds: bool) -> None:
    """From now on the linears of `model` use such copies under autocast, but for its head and those with their own way.

    `adds` as in `half`. Not for a sharded model, whose weights FSDP gathers in 16 bits already.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        dtype = arithmetic(x.device.type, self.weight)
        bias = None if self.bias is None else half(self.bias, dtype, adds)
        return F.linear(x, half(self.weight, dtype, adds), bias)

    for module in model.modules():
        if type(module) is nn.Linear and module is not head and "forward" not in module.__dict__:
            module.forward = MethodType(forward, module)  # type: ignore[method-assign]
