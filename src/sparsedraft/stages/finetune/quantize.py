"""Quantisation-aware training: decoder linears compute with rounded weights, gradients go to the exact ones.

maths.quantization rounds them: each forward takes the scales of the weights as they are by then, those that `pack`
takes without calibration text. The gradient goes straight through (Bengio et al. 2013), also where int4 clips: a
weight beyond the range widens the range of the next step.

`linear.weight` stays the same leaf parameter under the same name; only the module's `forward` changes. Optimizer,
gradient hooks, state dicts, DDP and FSDP2 (whose weight is whole while the forward runs) see no difference.

**What is saved: the float weights**, in the checkpoint's own dtype, and `compare` measures the quantised drafter from
exactly these. So packing, which quantises the saved weights by the same rule, makes the drafter that was measured.
Saving the rounded weights would be wrong twice: survivors that round to 0 would become zeros that the mask does not
claim (and that no later fine-tuning could move), and bfloat16's 8 significant bits do not hold 127 levels, so that
packing would find other codes. That holds for a drafter of `prune --quantize int4`, too: training starts from its
rounded weights, takes scales as for any other, and what is saved has no scales beside it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import group_of, snap
from sparsedraft.models.decoder import decoder_linears

UNSTRUCTURED = Pattern()
NONE: Mapping[str, Pattern] = MappingProxyType({})  # no pattern of any linear


class _StraightThrough(torch.autograd.Function):
    """`snap` forward, the identity backward. (w + (snap(w) - w).detach() would be off by roundings.)"""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scheme: str, group: int) -> Tensor:
        return snap(weight, scheme, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


def install(model: nn.Module, scheme: str, patterns: Mapping[str, Pattern] = NONE) -> None:
    """From now on, every decoder linear of `model` computes with quantised weights (scheme `none`: none does).

    The `patterns` of linears (default: unstructured) say how many inputs share a scale of int4. Call it before the
    model is wrapped. Every forward rounds, with or without a gradient, so validation and the text that the drafter
    writes are those of the quantised drafter.
    """

    def forward_of(group: int) -> Callable[[nn.Linear, Tensor], Tensor]:
        def forward(self: nn.Linear, x: Tensor) -> Tensor:
            return F.linear(x, _StraightThrough.apply(self.weight, scheme, group), self.bias)

        return forward

    if scheme != "none":
        for name, linear in decoder_linears(model).items():
            forward = forward_of(group_of(patterns.get(name, UNSTRUCTURED)))
            linear.forward = MethodType(forward, linear)  # type: ignore[method-assign]


def remove(model: nn.Module) -> None:
    """Undo `install`."""
    for linear in decoder_linears(model).values():
        linear.__dict__.pop("forward", None)


@torch.no_grad()
def compare(
    model: nn.Module,
    scheme: str,
    stored: torch.dtype,
    measure: Callable[[], dict[str, float]],
    patterns: Mapping[str, Pattern] = NONE,
) -> dict[str, Any]:
    """What `measure` says with float and with quantised weights: {"scheme", "float": {...}, "quantized": {...}}.

    First it rounds the weights to `stored`, the dtype they will be saved in. It leaves `model` without quantisation.
    """
    for parameter in model.parameters():
        parameter.copy_(parameter.to(stored))
    install(model, scheme, patterns)
    quantized = measure()
    remove(model)
    return {"scheme": scheme, "float": measure(), "quantized": quantized}
