"""The stage `pack`: a checkpoint -> a packed folder of the same model, without its zeros, its values rounded."""

from pathlib import Path
from typing import Any

from sparsedraft.base import artifact
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint, quantizers, shards
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.models.reload import check_loads
from sparsedraft.models.shards import Shards
from sparsedraft.models.skeleton import skeleton
from sparsedraft.native.packed_folder import is_packed
from sparsedraft.native.quantizer import register
from sparsedraft.stages.pack.head import frequent_tokens
from sparsedraft.stages.pack.writer import PackedWriter

WEIGHTS = ("f16", "bf16", "int8")


def pack(
    model: str,
    out: Path,
    *,
    weights: str = "int8",
    head_tokens: int | None = None,
    head_data: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Pack the checkpoint `model` into the folder `out`.

    `weights`: the type of the values: f16, bf16, or int8 with a scale for each row; biases and norms stay as they are.
    `head_tokens` trims the head to the tokens most frequent in the distilled data `head_data` (and those that end a
    text); the answers' tokens that it lost are counted.
    Raises UserError for a checkpoint that lies about its mask, values that do not fit, a head that cannot be trimmed.
    """
    if weights not in WEIGHTS:
        raise UserError(f"--weights {weights} is not known: choose one of {', '.join(WEIGHTS)}.")
    if (head_tokens is None) != (head_data is None):
        raise UserError("--head-tokens and --head-data belong together: the data says which tokens are frequent.")
    folder = checkpoint.find(model)
    shards.side_files(folder)  # refused now, not at the end
    check_packable(model, folder)

    def build(work: Path) -> dict[str, Any]:
        writer = PackedWriter(folder, work, weights)
        ids, head = None, {}
        if head_tokens is not None and head_data is not None:
            ids, missed = frequent_tokens(folder, head_data, head_tokens, writer.vocabulary())
            head = {"head_tokens": len(ids), "head_missed": missed}
        result = writer.write(ids) | head
        register()  # so that transformers loads the packed folder
        check_loads(work)
        return result

    inputs = {
        "model": folder, "weights": weights, "head_tokens": head_tokens,
        "head_data": Path(head_data) if head_data else None,
    }  # fmt: skip
    return artifact.make(out, "pack", inputs, build, overwrite=overwrite, reads=(model, head_data))


def check_packable(model: str, folder: Path) -> None:
    """Raise UserError for a checkpoint whose matrices are no plain linears: packed, quantised, or fused experts."""
    if is_packed(folder):
        raise UserError(f"model {model} is packed already: pack the checkpoint it came from.")
    config = checkpoint.read_config(folder)
    quantizers.check_plain(model, config, Shards(folder), "pack")
    decoder_linears(skeleton(config))
