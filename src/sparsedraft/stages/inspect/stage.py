"""What a checkpoint is made of, tensor by tensor: shapes, zeros, patterns, MACs; never in memory whole."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from transformers import PretrainedConfig

from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint, claims, quantizers
from sparsedraft.models.census import MatrixRecord, holds, known_macs, linear_names, nonzero_parameters, records
from sparsedraft.models.decoder import count_zeros
from sparsedraft.models.shards import Shards
from sparsedraft.models.sources import locate
from sparsedraft.native import layout_description
from sparsedraft.native.packed_folder import PackedReader, is_packed
from sparsedraft.stages.inspect.options import InspectOptions


def inspect(options: InspectOptions) -> dict[str, Any]:
    """Everything about a checkpoint: its linears (see Row), MACs, parameters, bytes, and what it claims.

    `macs_per_token` counts the active experts; it is None for a model whose layers hold what is no matrix.
    Raises UserError where there is no checkpoint, or a damaged one.
    """
    folder = locate(options.checkpoint)
    config = checkpoint.read_config(folder)
    if is_packed(folder):
        return _inspect_packed(folder, config)
    shards = Shards(folder)
    names, _ = linear_names(folder, shards)
    with track("inspecting", len(names), "matrices") as tracker:
        found = []
        for row in records(
            folder, shards, layout_description.of_plain if layout_description.runs_natively(folder) else None
        ):
            found.append(row)
            tracker.advance()
    size, zeros = sum(row.size for row in found), sum(row.zeros for row in found)
    nonzero, parameters = nonzero_parameters(shards)
    claim = claims.claim_of(folder)
    return {
        **_named(folder, config),
        "quantized": quantizers.format_of(config, shards),
        "macs_per_token": known_macs(folder, found),
        "macs_dense": known_macs(folder, [replace(row, zeros=0) for row in found]),
        "parameters": parameters,
        "nonzero_parameters": nonzero,
        "bytes": sum(shards.bytes(name) for name in shards.files),
        "dtypes": sorted(set(shards.types.values())),
        "sparsity": zeros / size if size else 0.0,
        "sparsity_whole_model": 1 - nonzero / parameters,
        "claims": claim["pattern"] if claim else None,
        "claim_holds": _claim_holds(claim, folder, names, shards) if claim else None,
        "linears": [{**asdict(row), "sparsity": row.zeros / row.size} for row in found],
    }


def _named(folder: Path, config: PretrainedConfig) -> dict[str, Any]:
    return {
        "checkpoint": str(folder),
        "architecture": (getattr(config, "architectures", None) or ["?"])[0],
        "layers": getattr(config.get_text_config(), "num_hidden_layers", None),
    }


def _inspect_packed(folder: Path, config: PretrainedConfig) -> dict[str, Any]:
    """`inspect` of a packed folder."""
    weights, found, outside, nonzero, parameters = PackedReader(folder), [], 0, 0, 0
    with track("inspecting", len(weights.names), "tensors") as tracker:
        for name in sorted(weights.names):
            linear = name.removesuffix(".weight")
            values = weights.matrix(name)[0] if linear in weights.entries else weights.vector(name)
            zeros = count_zeros(values)
            nonzero, parameters = nonzero + values.numel() - zeros, parameters + values.numel()
            tracker.advance()
            if linear not in weights.entries:
                continue
            if re.search(r"\.\d+\.", f".{linear}"):
                runs = layout_description.of_packed(values, weights.entries[linear].kind)
                found.append(MatrixRecord(linear, tuple(values.shape), zeros, holds(values), None, runs))
            elif linear == "lm_head" or config.get_text_config().tie_word_embeddings:
                ids = weights.head_ids()
                outside = values.shape[1] * (values.shape[0] if ids is None else len(ids))
    found.sort(key=lambda row: [(int(part) if part.isdigit() else -1, part) for part in row.name.split(".")])
    size, zeros = sum(row.size for row in found), sum(row.zeros for row in found)
    return {
        **_named(folder, config),
        "quantized": None,
        "macs_per_token": outside + size - zeros,
        "macs_dense": outside + size,
        "parameters": parameters,
        "nonzero_parameters": nonzero,
        "bytes": weights.bytes,
        "dtypes": sorted({entry.values for entry in weights.entries.values()}),
        "sparsity": zeros / size if size else 0.0,
        "sparsity_whole_model": 1 - nonzero / parameters,
        "claims": None,
        "claim_holds": None,
        "linears": [{**asdict(row), "sparsity": row.zeros / row.size} for row in found],
    }


def _claim_holds(claim: dict[str, Any], folder: Path, names: dict[str, str], shards: Shards) -> bool:
    try:
        for name in claim["linears"]:
            claims.check_claim(claim, name, shards.tensor(names[name]), folder)
    except (UserError, KeyError):
        return False
    return True


def table(result: dict[str, Any]) -> Table:
    """The linears as a table for people."""
    kind = f" (quantised: {result['quantized']})" if result["quantized"] else ""
    shown = Table(title=f"{result['checkpoint']}{kind}")
    for name in ("linear", "shape", "sparsity", "pattern", "relative error", "runs natively as"):
        shown.add_column(name, justify="left" if name in ("linear", "pattern", "runs natively as") else "right")
    for row in result["linears"]:
        error = "" if row["error"] is None else f"{row['error']:.4f}"
        shape = " x ".join(str(n) for n in row["shape"])
        shown.add_row(row["name"], shape, f"{row['sparsity']:.2%}", row["pattern"], error, row["runs"] or "")
    return shown
