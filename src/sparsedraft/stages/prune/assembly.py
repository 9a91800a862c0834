"""From pruned layers to a checkpoint: its shards, its claim of zeros, and the proof that both agree."""

from pathlib import Path
from typing import Any

from safetensors import safe_open

from sparsedraft.base.jsonfiles import write_json
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.maths.masks import unpack_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models import census, checkpoint, claims, rounded
from sparsedraft.models.decoder import count_zeros, linears_of
from sparsedraft.models.reload import check_loads
from sparsedraft.models.shards import Shards, copy_side_files, write
from sparsedraft.stages.prune.allocation import Shares
from sparsedraft.stages.prune.layer import Pruning


def assemble(model: Streamed, pieces: Path, work: Path, how: Pruning) -> dict[str, Any]:
    """Write the checkpoint `work` from the source's shards and the pruned layers in `pieces`; what it is like."""
    pruned = Shards(pieces)
    write(work, {name: (pruned if name in pruned.files else model.shards, name) for name in model.shards.files})
    copy_side_files(model.folder, work)
    checkpoint.write_config(model.folder, work)
    pattern, shares = how.pattern, how.shares
    claim = _claim(model, pruned, pattern, shares)
    write_json(work / "sparsity.json", claim | _write_beside(model, pruned, work, how))
    written = Shards(work)  # what is on disk counts, not what was in memory
    for name in claim["linears"]:
        weight = written.tensor(model.stored_name(f"{name}.weight"))
        claims.check_claim(claim, name, weight, work)
        rounded.codes_of(work, name, weight)
        rounded.mask_of(work, name, weight, claims.pattern_of(claim, name))
    check_loads(work)
    nonzero, parameters = census.nonzero_parameters(written)
    errors = _errors(model, pieces)
    differ = len(set(shares.values())) > 1
    return {
        "pattern": str(pattern),
        "sparsity": claim["sparsity"],
        "sparsity_whole_model": 1 - nonzero / parameters,
        "macs_per_token": census.macs(work),
        "mean_relative_error": sum(errors.values()) / len(errors),
        "relative_errors": errors,
        "linear_sparsity": {f"{i}.{name}": share for (i, name), share in shares.items()} if differ else None,
    }


def _claim(model: Streamed, pruned: Shards, pattern: Pattern, shares: Shares) -> dict[str, Any]:
    """What sparsity.json says: the zeros of each linear, and the patterns of those that differ from `pattern`.

    Of a rounded linear those of its mask: a weight that stays may have the code 0.
    """
    zeros, patterns, size = {}, {}, 0
    for index, name, linear in model.linears():
        full, share = model.linear_name(index, name), shares[index, name]
        weight = pruned.tensor(model.stored_name(f"{full}.weight"))
        mask = pruned.tensor(f"{full}.mask") if f"{full}.mask" in pruned.files else None
        zeros[full] = count_zeros(weight if mask is None else unpack_mask(mask, weight.shape[1]))
        size += linear.weight.numel()
        of_linear = pattern.at(1 - share)
        if share == 0 or (pattern.m and of_linear != pattern):
            patterns[full] = "dense" if share == 0 else str(of_linear)
    claim = {"pattern": str(pattern), "sparsity": sum(zeros.values()) / size, "linears": zeros}
    return claim | ({"patterns": patterns} if patterns else {})


def _write_beside(model: Streamed, pruned: Shards, work: Path, how: Pruning) -> dict[str, Any]:
    """Write scales and masks of the rounded linears; what sparsity.json says of them, nothing where none is rounded."""
    if how.quantize == "none":
        return {}
    linears = {model.linear_name(index, name): (index, name) for index, name, _ in model.linears()}
    scales, masks = ({full: pruned.tensor(f"{full}.{part}") for full in linears} for part in ("scale", "mask"))
    rounded.write_beside(work, scales, masks)
    groups = {full: how.group_of(*which) for full, which in linears.items()}
    return {"quantization": {"scheme": how.quantize, "groups": groups}}


def _errors(model: Streamed, pieces: Path) -> dict[str, float]:
    """The relative error of every linear, as it was stored with the layer."""
    errors: dict[str, float] = {}
    for index, layer in enumerate(model.layers):
        with safe_open(pieces / f"{index:05}.safetensors", "pt") as file:
            stored = file.metadata()
        errors |= {f"{index}.{name}": float(stored[name]) for name in linears_of(layer)}
    return errors
