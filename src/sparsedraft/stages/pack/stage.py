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
from sparsedraft.stages.pack.options import PackOptions
from sparsedraft.stages.pack.writer import PackedWriter


def pack(options: PackOptions) -> dict[str, Any]:
    """Pack the checkpoint `options.model` into the folder `options.out`.

    `weights`: the type of the values: f16, bf16, int8 with a scale for each row, or int4 with one for each group of
    inputs. `head_weights`: the same of embedding and head. Biases and norms stay as they are.
    `head_tokens` trims the head to the tokens most frequent in the distilled data `head_data` (and those that end a
    text); the answers' tokens that it lost are counted.
    Raises UserError for a checkpoint that lies about its mask, values that do not fit, a head that cannot be trimmed.
    """
    folder = checkpoint.find(options.model)
    shards.side_files(folder)  # refused now, not at the end
    check_packable(options.model, folder)
    head_weights = options.head_weights or ("int8" if options.weights == "int4" else options.weights)

    def build(work: Path) -> dict[str, Any]:
        writer = PackedWriter(folder, work, options.weights, head_weights)
        ids, head = None, {}
        if options.head_tokens is not None and options.head_data is not None:
            ids, missed = frequent_tokens(folder, options.head_data, options.head_tokens, writer.vocabulary())
            head = {"head_tokens": len(ids), "head_missed": missed}
        result = writer.write(ids) | head
        register()  # so that transformers loads the packed folder
        check_loads(work)
        return result

    inputs = {
        "model": folder, "weights": options.weights, "head_tokens": options.head_tokens,
        "head_data": Path(options.head_data) if options.head_data else None,
    }  # fmt: skip
    if head_weights != options.weights:  # folders of older versions stay as they are
        inputs["head_weights"] = head_weights
    reads = (options.model, options.head_data)
    return artifact.make(options.out, "pack", inputs, build, overwrite=options.overwrite, reads=reads)


def check_packable(model: str, folder: Path) -> None:
    """Raise UserError for a checkpoint whose matrices are no plain linears: packed, quantised, or fused experts."""
    if is_packed(folder):
        raise UserError(f"model {model} is packed already: pack the checkpoint it came from.")
    config = checkpoint.read_config(folder)
    quantizers.check_plain(model, config, Shards(folder), "pack")
    decoder_linears(skeleton(config))
