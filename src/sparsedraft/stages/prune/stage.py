"""The stage `prune`: a model and calibration text in, a sparse checkpoint out, a layer at a time."""

from pathlib import Path
from typing import Any

from torch import Tensor

from sparsedraft.base import artifact
from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.layerwise import calibration, sequential
from sparsedraft.layerwise.sparsegpt import ROUNDING_DAMPING
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models import checkpoint, claims, rounded, shards
from sparsedraft.models.tokenizers import templates
from sparsedraft.stages.prune import allocation
from sparsedraft.stages.prune.assembly import assemble
from sparsedraft.stages.prune.layer import Pruning, ZerosOf, prune_layer, restore, store
from sparsedraft.stages.prune.options import PruneOptions, PruneSettings


def prune(options: PruneOptions) -> dict[str, Any]:
    """Prune every decoder linear of `options.model`, layer by layer; write the checkpoint `options.out`.

    One decoder layer is in memory at a time; `memory.peak` says what else is. An interrupted run goes on with the
    first layer that is not finished. Everything but the pruned weights is copied as it is stored. In a model that
    claims zeros already, they stay zeros: it is only pruned further. Of a rounded one its mask's zeros do.
    Raises UserError for impossible options or pairs, and for NaN in weights or activations (which layer).
    """
    folder = checkpoint.find(options.model)
    shards.side_files(folder)  # refused now, not at the end
    tokenizer = calibration.tokenizer_for(folder, options.calibration, options.template_args)

    def build(work: Path) -> dict[str, Any]:
        model = Streamed(
            folder, dtype=checkpoint.dtype_named(options.dtype), device=checkpoint.device_named(options.device)
        )
        ids = calibration.sequences(
            options.calibration, tokenizer, options.tokens, options.sequence_length, options.seed, model.model
        )
        how = _plan(options, model, ids, work / ".measured")
        pieces = _prune_layers(model, ids, work, how)
        return {
            "model": options.model,
            **assemble(model, pieces, work, how),
            **({} if options.quantize == "none" else {"quantize": options.quantize}),
            "method": options.method,
            "allocation": options.allocation,
            "refined": options.refine,
            "calibration_tokens": ids.numel(),
        }

    reads = (options.model, options.calibration)
    return artifact.make(
        options.out,
        "prune",
        _inputs(options, folder),
        build,
        seed=options.seed,
        overwrite=options.overwrite,
        reads=reads,
    )


def _inputs(options: PruneOptions, folder: Path) -> dict[str, object]:
    """What the checkpoint depends on."""
    settings = options.part(PruneSettings)
    if options.quantize == "none":  # folders of versions before this option stay as they are
        del settings["quantize"]
    return {
        "model": folder,
        "calibration": calibration.source(options.calibration),
        **templates.inputs(options.template_args),
        "options": {
            **settings,
            "pattern": str(Pattern.parse(options.pattern)),
            "sparsity": options.share,
            "device": options.device,
            "dtype": options.dtype,
        },
        # of sweeps that only round; versions before took that of pruning
        **({"damping": ROUNDING_DAMPING} if options.rounds_apart else {}),
    }


def _plan(options: PruneOptions, model: Streamed, ids: Tensor, folder: Path) -> Pruning:
    """How much of each linear to prune, and how; an allocation that measures the model keeps its figures in `folder`.

    Raises UserError for a linear that the pattern does not fit, or of which the sparsity prunes nothing or all.
    """
    pattern, share = Pattern.parse(options.pattern), options.share
    for index, name, linear in model.linears():
        full, size = model.linear_name(index, name), linear.weight.numel()
        pattern.check_width(linear.in_features, full)
        if not 0 < round(share * size) < size:
            raise UserError(
                f"sparsity {share:g} prunes {'nothing' if share < 0.5 else 'all'} of the {size} weights of {full}: "
                "give a share further from 0 and 1."
            )
    if options.allocation == "uniform":
        shares = allocation.uniform(model, share)
    else:
        shares = allocation.owl(model, ids, folder, pattern, share)
    return Pruning(options.method, pattern, share, shares, options.refine, options.quantize)


def _prune_layers(model: Streamed, ids: Tensor, work: Path, how: Pruning) -> Path:
    """Prune layer after layer, each calibrated on what the pruned layers before it put out; the folder of the layers.

    A layer that an interrupted run has stored is read back and not pruned again.
    """
    pieces = work / ".layers"
    pieces.mkdir(exist_ok=True)
    activations = sequential.Activations(model, ids, work / ".hidden")
    with track(f"pruning to {how.pattern} {how.sparsity:.0%}", len(model), "layers") as tracker:
        tracker.advance(activations.start)
        for index, layer in sequential.walk(model, activations):
            piece = pieces / f"{index:05}.safetensors"
            if not piece.exists():
                outcomes = prune_layer(layer, index, activations, how, _zeros_of(model, index))
                store(model, layer, index, piece, outcomes)
            restore(model, layer, index, piece)
            tracker.advance()
    return pieces


def _zeros_of(model: Streamed, index: int) -> ZerosOf:
    """What was pruned before in the linears of layer `index`: what the checkpoint claims.

    Of rounded weights by the mask beside them: one that was kept may have the code 0. UserError where that is damaged.
    """
    claim = claims.claim_of(model.folder) or {"linears": {}}

    def zeros_of(name: str, weight: Tensor) -> Tensor | None:
        full = model.linear_name(index, name)
        if full not in claim["linears"]:
            return None
        kept = rounded.mask_of(model.folder, full, weight, claims.pattern_of(claim, full))
        return weight == 0 if kept is None else ~kept.to(weight.device)

    return zeros_of
