"""The stages `prune` and `drop-layers`: a model and calibration text in, a smaller checkpoint out."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsedraft import artifact, checkpoint
from sparsedraft.console import track
from sparsedraft.decoder import context_length, count_zeros, decoder_layers, decoder_linears, linears_of
from sparsedraft.errors import UserError
from sparsedraft.measure.macs import macs_of_checkpoint, macs_of_model, nonzero_parameters
from sparsedraft.pattern import Pattern
from sparsedraft.prune import allocation as allocations
from sparsedraft.prune import calibration as text
from sparsedraft.prune import layer_drop, sequential
from sparsedraft.prune.methods import METHODS


def prune(
    model: str,
    out: Path,
    calibration: str,
    *,
    pattern: str = "unstructured",
    sparsity: float | None = None,
    method: str = "sparsegpt",
    allocation: str = "uniform",
    tokens: int = 65536,
    sequence_length: int = 512,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Prune every decoder linear of `model`, layer by layer, calibrated on `calibration`; write the checkpoint `out`.

    An interrupted run goes on with the first layer that is not finished. Memory: the model in `dtype`, 8 bytes per
    calibration token and hidden unit, and one layer's Hessians, 4 · in_features² bytes for each distinct input.
    Raises UserError for impossible options or pairs, and for NaN in weights or activations (which layer).
    """
    wanted = Pattern.parse(pattern)
    share = wanted.resolve(sparsity)
    if method not in METHODS:
        raise UserError(f"--method {method} is not known: choose one of {', '.join(METHODS)}.")
    if allocation not in ("uniform", "owl"):
        raise UserError(f"--allocation {allocation} is not known: choose uniform or owl.")
    if allocation == "owl" and wanted.m:
        raise UserError(f"--allocation owl varies the sparsity, which {pattern} fixes: use uniform, or unstructured.")
    folder = checkpoint.find(model)

    def build(work: Path) -> dict[str, Any]:
        tokenizer = checkpoint.load_tokenizer(folder)
        loaded = checkpoint.load(folder, dtype=checkpoint.dtype_named(dtype), device=checkpoint.device_named(device))
        ids = text.sequences(calibration, tokenizer, tokens, sequence_length, seed, context_length(loaded))
        for name, linear in decoder_linears(loaded).items():
            wanted.check_width(linear.in_features, name)
        count = len(decoder_layers(loaded))
        shares = allocations.owl(loaded, ids, share) if allocation == "owl" else [share] * count
        errors: dict[str, float] = {}
        with track(f"pruning to {pattern} {share:.0%}", count, "layers") as tracker:
            for index, layer, activations in sequential.walk(loaded, ids):
                state = work / f".layer-{index:04}.safetensors"
                if state.exists():
                    found = _restore(layer, state)
                else:
                    found = _prune_layer(layer, index, activations, method, wanted, shares[index])
                    _store(layer, state, found)
                errors |= {f"{index}.{name}": error for name, error in found.items()}
                tracker.advance()
        linears = decoder_linears(loaded)
        zeros = {name: count_zeros(linear.weight) for name, linear in linears.items()}
        total = sum(linear.weight.numel() for linear in linears.values())
        claim = {"pattern": str(wanted), "sparsity": sum(zeros.values()) / total, "linears": zeros}
        checkpoint.save(loaded, tokenizer, work, sparsity=claim)
        checkpoint.check_sparsity(checkpoint.load(work), work)
        nonzero, parameters = nonzero_parameters(loaded)
        return {
            "model": model,
            "pattern": str(wanted),
            "sparsity": claim["sparsity"],
            "sparsity_whole_model": 1 - nonzero / parameters,
            "method": method,
            "allocation": allocation,
            "layer_sparsity": shares,
            "calibration_tokens": ids.numel(),
            "macs_per_token": macs_of_model(loaded),
            "mean_relative_error": sum(errors.values()) / len(errors),
            "relative_errors": errors,
        }

    inputs: dict[str, object] = {
        "model": folder,
        "calibration": _source(calibration),
        "options": {
            "pattern": str(wanted),
            "sparsity": share,
            "method": method,
            "allocation": allocation,
            "tokens": tokens,
            "sequence_length": sequence_length,
            "device": device,
            "dtype": dtype,
        },
    }
    return artifact.make(out, "prune", inputs, build, seed=seed, overwrite=overwrite)


def _source(calibration: str) -> Path | str:
    """A calibration file or folder counts by content, the package's own prompts by name."""
    return Path(calibration) if Path(calibration).exists() else calibration


@torch.no_grad()
def _prune_layer(
    layer: nn.Module,
    index: int,
    activations: sequential.Activations,
    method: str,
    pattern: Pattern,
    sparsity: float,
) -> dict[str, float]:
    """Prune the layer's linears in place; the relative error ‖(W-Ŵ)X‖² / ‖WX‖² of each."""
    found = sequential.hessians(layer, index, activations)
    errors = {}
    for name, linear in linears_of(layer).items():
        H = found[name].H
        if not bool(torch.isfinite(linear.weight).all()):
            raise UserError(f"layer {index}, {name}: the weights hold NaN or infinity, so the checkpoint is damaged.")
        if not bool(torch.isfinite(H).all()):
            raise UserError(
                f"layer {index}, {name}: the calibration activations hold NaN or infinity; try float32, or other text."
            )
        try:
            weight, keep = METHODS[method](linear.weight.detach(), H, pattern, sparsity)
        except UserError as error:
            raise UserError(f"layer {index}, {name}: {error}") from None
        errors[name] = relative_error(linear.weight.detach(), weight, H)
        linear.weight.copy_(weight * keep)  # the mask once more: rounding to a narrower dtype cannot unmake a zero
    return errors


def relative_error(before: Tensor, after: Tensor, H: Tensor) -> float:
    """‖(W-Ŵ)X‖² / ‖WX‖² by way of the Hessian: tr(D H Dᵀ) / tr(W H Wᵀ); 0 for a weight that never mattered."""

    def energy(weight: Tensor) -> float:
        return float(((weight.float() @ H) * weight.float()).sum())

    total = energy(before)
    return energy(before - after) / total if total > 0 else 0.0


def _store(layer: nn.Module, file: Path, errors: dict[str, float]) -> None:
    tensors = {name: linear.weight.detach().contiguous() for name, linear in linears_of(layer).items()}
    with artifact.write_atomic(file) as temporary:
        save_file(tensors, temporary, metadata={name: repr(error) for name, error in errors.items()})


@torch.no_grad()
def _restore(layer: nn.Module, file: Path) -> dict[str, float]:
    from safetensors import safe_open

    for name, tensor in load_file(file).items():
        layer.get_parameter(f"{name}.weight").copy_(tensor)
    with safe_open(file, "pt") as opened:
        stored = opened.metadata()
    return {name: float(stored[name]) for name in linears_of(layer)}


def drop_layers(
    model: str,
    out: Path,
    calibration: str,
    *,
    layers: int | None = None,
    match_macs: str | None = None,
    tokens: int = 65536,
    sequence_length: int = 512,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Drop the block of consecutive layers with the smallest angular distance; write the checkpoint `out`.

    `layers` says how many, or `match_macs` names a checkpoint whose MACs the rest should come nearest to.
    Raises UserError unless exactly one of the two is given, and for a number that leaves no layer.
    """
    if (layers is None) == (match_macs is None):
        raise UserError("drop-layers takes either --layers or --match-macs: give one of them.")
    folder = checkpoint.find(model)
    matched = checkpoint.find(match_macs) if match_macs else None

    def build(work: Path) -> dict[str, Any]:
        tokenizer = checkpoint.load_tokenizer(folder)
        loaded = checkpoint.load(folder, dtype=checkpoint.dtype_named(dtype), device=checkpoint.device_named(device))
        before = macs_of_model(loaded)
        count = len(decoder_layers(loaded))
        wanted = macs_of_checkpoint(matched) if matched else None
        n = layers or layer_drop.layers_to_match(loaded, wanted or 0)
        if not 0 < n < count:
            raise UserError(f"--layers {n} of {count} would leave none: give at most {count - 1}.")
        ids = text.sequences(calibration, tokenizer, tokens, sequence_length, seed, context_length(loaded))
        with track("angular distances", None, "passes") as tracker:
            distances = layer_drop.angular_distances(layer_drop.last_token_states(loaded, ids), n)
            tracker.advance()
        first = int(distances.argmin())
        layer_drop.drop(loaded, first, n)
        claim = checkpoint.claimed_sparsity(folder)
        if claim:  # a sparse drafter that loses layers keeps the mask of those that stay
            linears = decoder_linears(loaded)
            zeros = {name: count_zeros(linear.weight) for name, linear in linears.items()}
            share = sum(zeros.values()) / sum(linear.weight.numel() for linear in linears.values())
            claim = {**claim, "sparsity": share, "linears": zeros}
        checkpoint.save(loaded, tokenizer, work, sparsity=claim)
        return {
            "model": model,
            "layers_before": count,
            "dropped": n,
            "first_dropped": first,
            "angular_distance": float(distances[first]),
            "angular_distances": distances.tolist(),
            "calibration_tokens": ids.numel(),
            "macs_before": before,
            "macs_per_token": macs_of_model(loaded),
            "macs_wanted": wanted,
        }

    inputs: dict[str, object] = {
        "model": folder,
        "calibration": _source(calibration),
        "match_macs": matched,
        "options": {
            "layers": layers,
            "tokens": tokens,
            "sequence_length": sequence_length,
            "device": device,
            "dtype": dtype,
        },
    }
    return artifact.make(out, "drop-layers", inputs, build, seed=seed, overwrite=overwrite)
