"""What a checkpoint is made of: shapes, zeros, patterns, MACs. One tensor is in memory at a time."""

from typing import Any

from rich.table import Table

from sparsedraft.models.sources import locate
from sparsedraft.stages.inspect.options import InspectOptions
from sparsedraft.stages.inspect.plain import inspect_plain


def inspect(options: InspectOptions) -> dict[str, Any]:
    """Everything about a checkpoint: its linears (see MatrixRecord), MACs, parameters, bytes, and its claim.

    `macs_per_token` counts the active experts; it is None where a layer holds something other than matrices.
    Raises UserError where there is no checkpoint, or a damaged one.
    """
    folder = locate(options.checkpoint)
    if (result := inspect_plain(folder)) is not None:
        return result
    from sparsedraft.stages.inspect.counted import inspect_any  # brings torch and transformers

    return inspect_any(folder)


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
