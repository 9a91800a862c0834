"""What a checkpoint is made of: shapes, zeros, patterns, MACs. One tensor is in memory at a time."""

from typing import Any

from rich.table import Table

from sparsedraft.base.jsonfiles import read_object
from sparsedraft.models.config import drafting
from sparsedraft.models.config.parallel import mask_token_of
from sparsedraft.models.sources import locate
from sparsedraft.stages.inspect.options import InspectOptions
from sparsedraft.stages.inspect.plain import inspect_plain

COLUMNS = ("linear", "shape", "sparsity", "pattern", "values", "bytes a weight", "relative error", "runs natively as")
MIB = 2**20
LEFT = ("linear", "pattern", "values", "runs natively as")


def inspect(options: InspectOptions) -> dict[str, Any]:
    """Everything about a checkpoint: its linears (see MatrixRecord), MACs, parameters, bytes, and its claim.

    `bytes_per_weight` is of the linears, on disk, with the places of what is not zero and the scales.
    `cache_bytes`: of keys and values of `context_length` tokens in the native engine; None where it does not run the
    model.
    `drafter_temperature`, `drafter_window` and `drafter_sinks`: the drafter's own (see models.config.drafting); None
    where its folder says nothing.
    `mask_token`: what a drafter that drafts in parallel reads in the place of its drafts; None where it does not.
    `macs_per_token` counts the active experts; it is None where a layer holds something other than matrices.
    Raises UserError where there is no checkpoint, or a damaged one.
    """
    folder = locate(options.checkpoint)
    result = inspect_plain(folder)
    if result is None:
        from sparsedraft.stages.inspect.counted import inspect_any  # brings torch and transformers

        result = inspect_any(folder)
    each = result["cache_bytes_per_token"] or {}
    result["cache_bytes"] = {name: size * options.context_length for name, size in each.items()} or None
    own = drafting.of(folder)
    window, sinks = own.reads or (None, None)
    result |= {"drafter_temperature": own.temperature, "drafter_window": window, "drafter_sinks": sinks}
    mask_token = mask_token_of(read_object(folder / "config.json"), folder)
    return result | {"context_length": options.context_length, "mask_token": mask_token}


def table(result: dict[str, Any]) -> Table:
    """The linears as a table for people; int4/64 has a scale for each 64 inputs."""
    kind = f" (quantised: {result['quantized']})" if result["quantized"] else ""
    head = f"; head in {result['head_weights']}" if result["head_weights"] else ""
    head += f", embedding in {result['embedding_weights']}" if result["embedding_weights"] else ""
    if (cache := result["cache_bytes"]) and not kind:
        sizes = ", ".join(f"{size / MIB:,.0f} MiB in {name}" for name, size in cache.items())
        head += f"; {result['bytes'] / MIB:,.0f} MiB of weights; keys and values of "
        head += f"{result['context_length']:,} tokens: {sizes}"
    if (own := result["drafter_temperature"]) is not None:
        head += f"; as a drafter accepted most at {own:g} times the target's temperature"
    if (window := result["drafter_window"]) is not None:
        head += f"; as a drafter reads the first {result['drafter_sinks']} tokens of a long text and its last {window}"
    if (token := result["mask_token"]) is not None:
        head += f"; drafts in parallel, at mask token {token}"
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
