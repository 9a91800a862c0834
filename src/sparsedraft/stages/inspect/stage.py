"""What a checkpoint is made of: shapes, zeros, patterns, MACs. One tensor is in memory at a time."""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from transformers import PretrainedConfig

from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint, claims, quantizers
from sparsedraft.models.census import (
    MatrixRecord,
    holds,
    known_macs,
    layer_order,
    linear_names,
    nonzero_parameters,
    records,
)
from sparsedraft.models.decoder import count_zeros
from sparsedraft.models.shards import Shards
from sparsedraft.models.sources import locate
from sparsedraft.native import layout_description
from sparsedraft.native.packed_folder import PackedReader, is_packed
from sparsedraft.stages.inspect.options import InspectOptions


@dataclass(frozen=True)
class Contents:
    """What was counted in a checkpoint. MACs are per token, and None where they are not known."""

    matrices: list[MatrixRecord]
    macs: int | None
    macs_dense: int | None  # with no weight pruned
    nonzero: int  # parameters that are not zero,
    parameters: int  # and all parameters
    bytes: int
    dtypes: list[str]
    quantized: str | None = None  # the quantiser's format
    claim: str | None = None  # the pattern that the checkpoint claims,
    claim_holds: bool | None = None  # and whether its weights have it

    def to_dict(self) -> dict[str, Any]:
        """As the result has it."""
        size, zeros = sum(m.size for m in self.matrices), sum(m.zeros for m in self.matrices)
        return {
            "quantized": self.quantized,
            "macs_per_token": self.macs,
            "macs_dense": self.macs_dense,
            "parameters": self.parameters,
            "nonzero_parameters": self.nonzero,
            "bytes": self.bytes,
            "dtypes": self.dtypes,
            "sparsity": zeros / size if size else 0.0,
            "sparsity_whole_model": 1 - self.nonzero / self.parameters,
            "claims": self.claim,
            "claim_holds": self.claim_holds,
            "linears": [{**asdict(m), "sparsity": m.zeros / m.size} for m in self.matrices],
        }


def inspect(options: InspectOptions) -> dict[str, Any]:
    """Everything about a checkpoint: its linears (see MatrixRecord), MACs, parameters, bytes, and its claim.

    `macs_per_token` counts the active experts; it is None where a layer holds something other than matrices.
    Raises UserError where there is no checkpoint, or a damaged one.
    """
    folder = locate(options.checkpoint)
    config = checkpoint.read_config(folder)
    contents = _packed(folder, config) if is_packed(folder) else _plain(folder, config)
    return {
        "checkpoint": str(folder),
        "architecture": (getattr(config, "architectures", None) or ["?"])[0],
        "layers": getattr(config.get_text_config(), "num_hidden_layers", None),
        **contents.to_dict(),
    }


def _plain(folder: Path, config: PretrainedConfig) -> Contents:
    """The contents of a Hugging Face checkpoint, one matrix in memory at a time."""
    shards = Shards(folder)
    names, _ = linear_names(folder, shards)
    layout_of = layout_description.of_plain if layout_description.runs_natively(folder) else None
    with track("inspecting", len(names), "matrices") as tracker:
        matrices = []
        for record in records(folder, shards, layout_of):
            matrices.append(record)
            tracker.advance()
    nonzero, parameters = nonzero_parameters(shards)
    claim = claims.claim_of(folder)
    return Contents(
        matrices=matrices,
        macs=known_macs(folder, matrices),
        macs_dense=known_macs(folder, [replace(record, zeros=0) for record in matrices]),
        nonzero=nonzero,
        parameters=parameters,
        bytes=sum(shards.bytes(name) for name in shards.files),
        dtypes=sorted(set(shards.types.values())),
        quantized=quantizers.format_of(config, shards),
        claim=claim["pattern"] if claim else None,
        claim_holds=_claim_holds(claim, folder, names, shards) if claim else None,
    )


def _packed(folder: Path, config: PretrainedConfig) -> Contents:
    """The contents of a packed folder, one tensor in memory at a time."""
    weights = PackedReader(folder)
    matrices: list[MatrixRecord] = []
    head = nonzero = parameters = 0
    with track("inspecting", len(weights.names), "tensors") as tracker:
        for name in sorted(weights.names):
            linear = name.removesuffix(".weight")
            entry = weights.entries.get(linear)
            values = weights.vector(name) if entry is None else weights.matrix(name)[0]
            zeros = count_zeros(values)
            nonzero, parameters = nonzero + values.numel() - zeros, parameters + values.numel()
            tracker.advance()
            if entry is None:
                continue
            if re.search(r"\.\d+\.", f".{linear}"):  # inside a decoder layer
                runs = layout_description.of_packed(values, entry.kind)
                matrices.append(MatrixRecord(linear, tuple(values.shape), zeros, holds(values), None, runs))
            elif linear == "lm_head" or config.get_text_config().tie_word_embeddings:
                ids = weights.head_ids()
                head = values.shape[1] * (values.shape[0] if ids is None else len(ids))
    matrices.sort(key=lambda record: layer_order(record.name))
    size = sum(record.size for record in matrices)
    return Contents(
        matrices=matrices,
        macs=head + size - sum(record.zeros for record in matrices),
        macs_dense=head + size,
        nonzero=nonzero,
        parameters=parameters,
        bytes=weights.bytes,
        dtypes=sorted({entry.values for entry in weights.entries.values()}),
    )


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
    linears = Table(title=f"{result['checkpoint']}{kind}")
    for name in ("linear", "shape", "sparsity", "pattern", "relative error", "runs natively as"):
        linears.add_column(name, justify="left" if name in ("linear", "pattern", "runs natively as") else "right")
    for row in result["linears"]:
        error = "" if row["error"] is None else f"{row['error']:.4f}"
        shape = " x ".join(str(n) for n in row["shape"])
        linears.add_row(row["name"], shape, f"{row['sparsity']:.2%}", row["pattern"], error, row["runs"] or "")
    return linears
