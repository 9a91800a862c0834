"""What a checkpoint is made of: shapes, zeros, patterns, MACs. One tensor is in memory at a time."""

from typing import Any

from rich.table import Table

from sparsedraft.models.sources import locate
from sparsedraft.stages.inspect.options import InspectOptions
from sparsedraft.stages.inspect.plain import inspect_plain

COLUMNS = ("linear", "shape", "sparsity", "pattern", "values", "bytes a weight", "relative error", "runs natively as")
LEFT = ("linear", "pattern", "values", "runs natively as")


def inspect(options: InspectOptions) -> dict[str, Any]:
    """Everything about a checkpoint: its linears (see MatrixRecord), MACs, parameters, bytes, and its claim.

    `bytes_per_weight` is of the linears, on disk, with the places of what is not zero and the scales.
    `macs_per_token` counts the active experts; it is None where a layer holds something other than matrices.
    Raises UserError where there is no checkpoint, or a damaged one.
    """
    folder = locate(options.checkpoint)
    if (result := inspect_plain(folder)) is not None:
        return result
    from sparsedraft.stages.inspect.counted import inspect_any  # brings torch and transformers

    return inspect_any(folder)


def table(result: dict[str, Any]) -> Table:
    """The linears as a table for people; int4/64 has a scale for each 64 inputs."""
    kind = f" (quantised: {result['quantized']})" if result["quantized"] else ""
    head = f"; head in {result['head_weights']}" if result["head_weights"] else ""
    head += f", embedding in {result['embedding_weights']}" if result["embedding_weights"] else ""
    linears = Table(title=f"{result['checkpoint']}{kind}{head}", padding=(0, 0, 0, 1))
    for name in COLUMNS:
        linears.add_column(name, justify="left" if name in LEFT else "right", no_wrap=name == "linear")
    for row in result["linears"]:
        linears.add_row(
            row["name"],
            " x ".join(str(n) for n in row["shape"]),
            f"{row['sparsity']:.2%}",
            row["pattern"],
            f"{row['values']}/{row['group']}" if row["group"] else row["values"],
            f"{row['bytes_per_weight']:.3f}",
            "" if row["error"] is None else f"{row['error']:.4f}",
            row["runs"] or "",
        )
    return linears
