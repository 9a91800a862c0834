"""One decoder layer: prune its linears, store them as the checkpoint will, and read them back."""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.layerwise import sequential
from sparsedraft.layerwise.sparsegpt import Hessian, relative_error
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models.decoder import linears_of
from sparsedraft.stages.prune.allocation import Shares
from sparsedraft.stages.prune.methods import METHODS
from sparsedraft.stages.prune.refine import refine


@dataclass(frozen=True)
class Pruning:
    """How to prune: to `sparsity` in all, with the `shares` of zeros by (layer, linear)."""

    method: str
    pattern: Pattern
    sparsity: float
    shares: Shares
    refine: bool


@torch.no_grad()
def prune_layer(
    layer: nn.Module, index: int, activations: sequential.Activations, how: Pruning, sparse: Container[str] = ()
) -> dict[str, float]:
    """Prune the layer's linears in place; the relative error ‖(W-Ŵ)X‖² / ‖WX‖² of each.

    Linears in `sparse` were pruned before, and their zeros stay.
    """
    linears = linears_of(layer)
    hessians = sequential.hessians(layer, index, activations)
    errors = {}
    waiting = list(linears)
    while waiting:  # linears of one input in a row, so that one factor is in memory at a time
        hessian = hessians[waiting[0]]
        for name in [n for n in waiting if hessians[n] is hessian]:
            waiting.remove(name)
            weight = linears[name].weight.detach()
            zeros = weight == 0 if name in sparse else None
            try:
                pruned = _prune_linear(weight, hessian, how, how.shares[index, name], zeros)
            except UserError as error:
                raise UserError(f"layer {index}, {name}: {error}") from None
            errors[name] = relative_error(weight, pruned, hessian.H)
            linears[name].weight.copy_(pruned)
        hessian.release()
    return {name: errors[name] for name in linears}


def _prune_linear(weight: Tensor, hessian: Hessian, how: Pruning, sparsity: float, zeros: Tensor | None) -> Tensor:
    if sparsity == 0:
        return weight
    pattern = how.pattern.at(1 - sparsity) if how.pattern.m else how.pattern
    pruned, keep = METHODS[how.method](weight, hessian, pattern, sparsity, zeros)
    if how.refine:
        hessian.release()  # its memory is needed
        pruned = refine(weight, pruned, keep, hessian.H)
    if not bool(torch.isfinite(pruned).all()):
        raise UserError("pruning gave NaN or infinity: give more calibration tokens, or try float32.")
    return pruned * keep  # the mask once more: rounding cannot unmake a zero


def store(model: Streamed, layer: nn.Module, index: int, file: Path, errors: dict[str, float]) -> None:
    """Write the layer's linears under their names and in the types of the source's shards, with their `errors`."""
    tensors = {}
    for name, linear in linears_of(layer).items():
        stored = model.stored_name(f"{model.linear_name(index, name)}.weight")
        source, weight = model.shards.tensor(stored), linear.weight.detach().cpu()
        # a weight that did not change stays as it is stored, also where the arithmetic is narrower
        tensors[stored] = torch.where(weight == source.to(weight.dtype), source, weight.to(source.dtype)).contiguous()
        if not bool(torch.isfinite(tensors[stored]).all()):
            raise UserError(
                f"layer {index}, {name}: a weight is too large for {str(source.dtype).removeprefix('torch.')}, in "
                "which the checkpoint is stored: convert it to bfloat16 or float32 first."
            )
    with write_atomic(file) as temporary:
        save_file(tensors, temporary, metadata={name: repr(error) for name, error in errors.items()})


@torch.no_grad()
def restore(model: Streamed, layer: nn.Module, index: int, file: Path) -> None:
    """Give the layer the weights as stored, rounding included: the next layers see what the checkpoint will do."""
    tensors = load_file(file)
    for name, linear in linears_of(layer).items():
        linear.weight.copy_(tensors[model.stored_name(f"{model.linear_name(index, name)}.weight")])
