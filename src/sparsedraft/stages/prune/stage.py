"""The stage `prune`: a model and calibration text in, a sparse checkpoint out, a layer at a time."""

from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsedraft.base import artifact
from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models import census, checkpoint, claims, shards
from sparsedraft.models.decoder import count_zeros, linears_of
from sparsedraft.models.reload import check_loads
from sparsedraft.models.tokenizers import templates
from sparsedraft.stages.prune import allocation as allocations
from sparsedraft.stages.prune import calibration as text
from sparsedraft.stages.prune import sequential
from sparsedraft.stages.prune.methods import METHODS
from sparsedraft.stages.prune.options import PruneOptions, PruneSettings
from sparsedraft.stages.prune.refine import refine as refined
from sparsedraft.stages.prune.sparsegpt import Hessian, relative_error
from sparsedraft.stages.prune.streamed import Streamed


def prune(options: PruneOptions) -> dict[str, Any]:
    """Prune every decoder linear of `options.model`, layer by layer; write the checkpoint `options.out`.

    One decoder layer is in memory at a time; what else is, `memory.peak` says. An interrupted run goes on with
    the first layer that is not finished. Everything but the pruned weights is copied as it is stored. In a model that
    claims zeros already, they stay: it is pruned further, never revived.
    Raises UserError for impossible options or pairs, and for NaN in weights or activations (which layer).
    """
    wanted, share = Pattern.parse(options.pattern), options.share
    folder = checkpoint.find(options.model)
    shards.side_files(folder)  # refused now, not at the end
    tokenizer = text.tokenizer_for(folder, options.calibration, options.template_args)

    def build(work: Path) -> dict[str, Any]:
        streamed = Streamed(
            folder, dtype=checkpoint.dtype_named(options.dtype), device=checkpoint.device_named(options.device)
        )
        ids = text.sequences(
            options.calibration, tokenizer, options.tokens, options.sequence_length, options.seed, streamed.model
        )
        for index, name, linear in streamed.linears():
            full, size = streamed.linear_name(index, name), linear.weight.numel()
            wanted.check_width(linear.in_features, full)
            if not 0 < round(share * size) < size:
                raise UserError(
                    f"sparsity {share:g} prunes {'nothing' if share < 0.5 else 'all'} of the {size} weights of {full}: "
                    "give a share further from 0 and 1."
                )
        earlier = (claims.claim_of(folder) or {"linears": {}})["linears"]
        pieces = work / ".layers"
        pieces.mkdir(exist_ok=True)
        shares = _allocate(options.allocation, streamed, ids, work / ".measured", wanted, share)
        activations = sequential.Activations(streamed, ids, work / ".hidden")
        with track(f"pruning to {wanted} {share:.0%}", len(streamed), "layers") as tracker:
            tracker.advance(activations.start)
            for index, layer in sequential.walk(streamed, activations):
                piece = pieces / f"{index:05}.safetensors"
                if not piece.exists():
                    held = {name for name in linears_of(layer) if streamed.linear_name(index, name) in earlier}
                    errors = _prune_layer(
                        layer, index, activations, options.method, wanted, shares, options.refine, held
                    )
                    _store(streamed, layer, index, piece, errors)
                _restore(streamed, layer, index, piece)
                tracker.advance()
        return {
            "model": options.model,
            **_finish(streamed, pieces, work, wanted, shares),
            "method": options.method,
            "allocation": options.allocation,
            "refined": options.refine,
            "calibration_tokens": ids.numel(),
        }

    inputs: dict[str, object] = {
        "model": folder,
        "calibration": calibration_source(options.calibration),
        **templates.inputs(options.template_args),
        "options": {
            **options.part(PruneSettings),
            "pattern": str(wanted),
            "sparsity": share,
            "device": options.device,
            "dtype": options.dtype,
        },
    }
    reads = (options.model, options.calibration)
    return artifact.make(
        options.out, "prune", inputs, build, seed=options.seed, overwrite=options.overwrite, reads=reads
    )


def calibration_source(calibration: str) -> Path | str:
    """A calibration file or folder counts by content, the package's own prompts by name."""
    return Path(calibration) if Path(calibration).exists() else calibration


def _allocate(
    allocation: str, model: Streamed, ids: Tensor, folder: Path, pattern: Pattern, sparsity: float
) -> allocations.Shares:
    if allocation == "uniform":
        return allocations.uniform(model, sparsity)
    return allocations.owl(model, ids, folder, pattern, sparsity)


@torch.no_grad()
def _prune_layer(
    layer: nn.Module,
    index: int,
    activations: sequential.Activations,
    method: str,
    pattern: Pattern,
    shares: allocations.Shares,
    refine: bool,
    held: Container[str] = (),
) -> dict[str, float]:
    """Prune the layer's linears in place; the relative error ‖(W-Ŵ)X‖² / ‖WX‖² of each. Zeros of `held` ones stay."""
    linears = linears_of(layer)
    found = sequential.hessians(layer, index, activations)
    errors = {}
    waiting = list(linears)
    while waiting:  # linears of one input in a row, so that one factor is in memory at a time
        hessian = found[waiting[0]]
        for name in [n for n in waiting if found[n] is hessian]:
            waiting.remove(name)
            linear = linears[name]
            try:
                weight = linear.weight.detach()
                zeros = weight == 0 if name in held else None
                pruned = _prune_linear(weight, hessian, method, pattern, shares[index, name], refine, zeros)
            except UserError as error:
                raise UserError(f"layer {index}, {name}: {error}") from None
            errors[name] = relative_error(weight, pruned, hessian.H)
            linear.weight.copy_(pruned)
        hessian.release()
    return {name: errors[name] for name in linears}


def _prune_linear(
    weight: Tensor,
    hessian: Hessian,
    method: str,
    pattern: Pattern,
    sparsity: float,
    refine: bool,
    zeros: Tensor | None = None,
) -> Tensor:
    if sparsity == 0:
        return weight
    own = pattern.at(1 - sparsity) if pattern.m else pattern
    pruned, keep = METHODS[method](weight, hessian, own, sparsity, zeros)
    if refine:
        hessian.release()  # its memory is needed
        pruned = refined(weight, pruned, keep, hessian.H)
    if not bool(torch.isfinite(pruned).all()):
        raise UserError("pruning gave NaN or infinity: give more calibration tokens, or try float32.")
    return pruned * keep  # the mask once more: rounding cannot unmake a zero


def _store(model: Streamed, layer: nn.Module, index: int, file: Path, errors: dict[str, float]) -> None:
    """Write the layer's linears under their names and in the types of the source's shards."""
    tensors = {}
    for name, linear in linears_of(layer).items():
        stored = model.stored_name(f"{model.linear_name(index, name)}.weight")
        source, weight = model.shards.tensor(stored), linear.weight.detach().cpu()
        # what was not changed stays as it is stored, also where the arithmetic is narrower
        tensors[stored] = torch.where(weight == source.to(weight.dtype), source, weight.to(source.dtype)).contiguous()
        if not bool(torch.isfinite(tensors[stored]).all()):
            raise UserError(
                f"layer {index}, {name}: a weight is too large for {str(source.dtype).removeprefix('torch.')}, in "
                "which the checkpoint is stored: convert it to bfloat16 or float32 first."
            )
    with write_atomic(file) as temporary:
        save_file(tensors, temporary, metadata={name: repr(error) for name, error in errors.items()})


@torch.no_grad()
def _restore(model: Streamed, layer: nn.Module, index: int, file: Path) -> None:
    """Give the layer the weights as stored, rounding included: the next layers see what the checkpoint will do."""
    tensors = load_file(file)
    for name, linear in linears_of(layer).items():
        linear.weight.copy_(tensors[model.stored_name(f"{model.linear_name(index, name)}.weight")])


def _finish(model: Streamed, pieces: Path, work: Path, pattern: Pattern, shares: allocations.Shares) -> dict[str, Any]:
    """Put the checkpoint together from the source's shards and the pruned layers; what there is to say of it."""
    done = shards.Shards(pieces)
    tensors = {name: (done if name in done.files else model.shards, name) for name in model.shards.files}
    shards.write(work, tensors)
    shards.copy_side_files(model.folder, work)
    checkpoint.write_config(model.folder, work)
    errors: dict[str, float] = {}
    for index in range(len(model)):
        with safe_open(pieces / f"{index:05}.safetensors", "pt") as opened:
            stored = opened.metadata()
        errors |= {f"{index}.{name}": float(stored[name]) for name in linears_of(model.layers[index])}
    claim: dict[str, Any] = {"pattern": str(pattern), "sparsity": 0.0, "linears": {}}
    patterns, size = {}, 0
    for index, name, linear in model.linears():
        full = model.linear_name(index, name)
        claim["linears"][full] = count_zeros(done.tensor(model.stored_name(f"{full}.weight")))
        size += linear.weight.numel()
        own = pattern.at(1 - shares[index, name])
        if shares[index, name] == 0 or (pattern.m and own != pattern):
            patterns[full] = "dense" if shares[index, name] == 0 else str(own)
    claim["sparsity"] = sum(claim["linears"].values()) / size
    write_json(work / "sparsity.json", claim | ({"patterns": patterns} if patterns else {}))
    written = shards.Shards(work)  # what is on disk counts, not what was in memory
    for name in claim["linears"]:
        stored_name = model.stored_name(f"{name}.weight")
        claims.check_claim(claim | {"patterns": patterns}, name, written.tensor(stored_name), work)
    check_loads(work)
    nonzero, parameters = census.nonzero_parameters(written)
    varied = len(set(shares.values())) > 1
    return {
        "pattern": str(pattern),
        "sparsity": claim["sparsity"],
        "sparsity_whole_model": 1 - nonzero / parameters,
        "macs_per_token": census.macs(work),
        "mean_relative_error": sum(errors.values()) / len(errors),
        "relative_errors": errors,
        "linear_sparsity": {f"{i}.{name}": share for (i, name), share in shares.items()} if varied else None,
    }
