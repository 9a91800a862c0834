"""One decoder layer: prune its linears, store them as the checkpoint will, and read them back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.layerwise import sequential
from sparsedraft.layerwise.sparsegpt import UNSTRUCTURED, Goal, Hessian, prune_and_round, relative_error
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.maths.masks import pack_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import group_of
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
    quantize: str

    def pattern_of(self, index: int, name: str) -> Pattern:
        """The pattern of one linear: of N:M with the N of its share (M:M stands for dense)."""
        return self.pattern.at(1 - self.shares[index, name]) if self.pattern.m else self.pattern

    def group_of(self, index: int, name: str) -> int:
        """Inputs of one linear that share an int4 scale; 0 where nothing is rounded."""
        return 0 if self.quantize == "none" else group_of(self.pattern_of(index, name))


ZerosOf = Callable[[str, Tensor], Tensor | None]  # (a linear's name in the layer, its weight) -> what was pruned before


@dataclass(frozen=True)
class Outcome:
    """What became of a linear: its relative error ‖(W-Ŵ)X‖² / ‖WX‖²; if it is rounded, its int4 scale and keep-mask."""

    error: float
    scale: Tensor | None = None
    keep: Tensor | None = None


@torch.no_grad()
def prune_layer(
    layer: nn.Module, index: int, activations: sequential.Activations, how: Pruning, zeros_of: ZerosOf
) -> dict[str, Outcome]:
    """Prune the layer's linears in place, and round them where `how` says so; what became of each.

    `zeros_of` gives the weights (bool, like the linear's) that were pruned before and stay 0; None: there are none.
    """
    linears = linears_of(layer)
    hessians = sequential.hessians(layer, index, activations)
    outcomes = {}
    for name in sequential.by_input(linears, hessians):
        weight, hessian = linears[name].weight.detach(), hessians[name]
        zeros = zeros_of(name, weight)
        try:
            pruned, scale, keep = _prune_linear(weight, hessian, how, (index, name), zeros)
        except UserError as error:
            raise UserError(f"layer {index}, {name}: {error}") from None
        outcomes[name] = Outcome(relative_error(weight, pruned, hessian.H), scale, keep)
        linears[name].weight.copy_(pruned)
    return {name: outcomes[name] for name in linears}


def _prune_linear(
    weight: Tensor, hessian: Hessian, how: Pruning, which: tuple[int, str], zeros: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(the new weight of the linear `which`; if it is rounded, the scale [out, groups] of its codes, its keep-mask)."""
    sparsity, group = how.shares[which], how.group_of(*which)
    if group and how.method == "sparsegpt" and not how.refine:
        goal = Goal(how.pattern_of(*which) if sparsity else UNSTRUCTURED, sparsity, group)
        codes, keep = prune_and_round(weight, hessian, goal, zeros)
        return codes.weight(weight.dtype), codes.scale, keep
    pruned = weight
    if sparsity:
        pruned, keep = _pruned(weight, hessian, how, which, zeros)
        zeros = ~keep  # the mask is the method's
    if not group:
        return pruned, None, None
    codes, keep = prune_and_round(pruned, hessian, Goal(group=group), zeros)
    return codes.weight(weight.dtype), codes.scale, keep


def _pruned(
    weight: Tensor, hessian: Hessian, how: Pruning, which: tuple[int, str], zeros: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(the weight pruned by the method, and refined if that was asked for; its keep-mask)."""
    pattern, sparsity = how.pattern_of(*which), how.shares[which]
    pruned, keep = METHODS[how.method](weight, hessian, pattern, sparsity, zeros)
    if how.refine:
        hessian.release()  # its memory is needed
        pruned = refine(weight, pruned, keep, hessian.H)
    if not bool(torch.isfinite(pruned).all()):
        raise UserError("pruning gave NaN or infinity: give more calibration tokens, or try float32.")
    return pruned * keep, keep  # the mask once more: rounding cannot unmake a zero


def store(model: Streamed, layer: nn.Module, index: int, file: Path, outcomes: dict[str, Outcome]) -> None:
    """Write the layer's linears under their names and in the types of the source's shards, with their `outcomes`."""
    tensors = {}
    for name, linear in linears_of(layer).items():
        full = model.linear_name(index, name)
        stored = model.stored_name(f"{full}.weight")
        source, weight = model.shards.tensor(stored), linear.weight.detach().cpu()
        # a weight that did not change stays as it is stored, also where the arithmetic is narrower
        tensors[stored] = torch.where(weight == source.to(weight.dtype), source, weight.to(source.dtype)).contiguous()
        if not bool(torch.isfinite(tensors[stored]).all()):
            raise UserError(
                f"layer {index}, {name}: a weight is too large for {str(source.dtype).removeprefix('torch.')}, in "
                "which the checkpoint is stored: convert it to bfloat16 or float32 first."
            )
        outcome = outcomes[name]
        if outcome.scale is not None and outcome.keep is not None:
            tensors[f"{full}.scale"], tensors[f"{full}.mask"] = outcome.scale.cpu(), pack_mask(outcome.keep.cpu())
    with write_atomic(file) as temporary:
        save_file(tensors, temporary, metadata={name: repr(outcome.error) for name, outcome in outcomes.items()})


@torch.no_grad()
def restore(model: Streamed, layer: nn.Module, index: int, file: Path) -> None:
    """Give the layer the weights as stored, rounding included: the next layers see what the checkpoint will do."""
    tensors = load_file(file)
    for name, linear in linears_of(layer).items():
        linear.weight.copy_(tensors[model.stored_name(f"{model.linear_name(index, name)}.weight")])
