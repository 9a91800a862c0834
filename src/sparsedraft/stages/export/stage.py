"""The stage `export`: a checkpoint -> a GGUF file of the same model, which llama.cpp's programs read."""

from typing import Any

from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.base.places import check_apart, locked
from sparsedraft.models import checkpoint
from sparsedraft.stages.export.options import ExportOptions
from sparsedraft.stages.export.place import check_file, check_room


def export(options: ExportOptions) -> dict[str, Any]:
    """Write the checkpoint `options.checkpoint` as the GGUF file `options.out`.

    Codes of int4 go over bit for bit, into q4_0 and q8_0 alike; codes of int8 into q8_0, their scales in float16.
    Floats are rounded: q4_0 by least squares, q8_0 by the largest weight of each 32. Zeros stay zeros in every type.
    Norms and biases are float32. A matrix whose rows are no multiple of 32 keeps 16 bits; `kept_as_floats` names it.
    `zeros` is the share of zeros in the matrices of the layers as they were written.
    Raises UserError, before anything is written, for a model that llama.cpp would run otherwise than transformers.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("writing GGUF needs the extra: pip install 'sparsedraft[gguf]'.") from None
    from sparsedraft.stages.export.planned import Planned  # needs the extra

    check_file(options.out, options.overwrite)
    folder = checkpoint.find(options.checkpoint)
    check_apart(options.out, {"checkpoint": folder}, (options.checkpoint,))
    planned = Planned(options.checkpoint, folder, options.gguf)
    check_room(options.out, planned.plan.bytes)
    with locked(options.out):
        check_file(options.out, options.overwrite)  # again: another process may have written it in the meantime
        with write_atomic(options.out) as temporary:
            planned.write(temporary)
    return {"path": str(options.out), "bytes": options.out.stat().st_size, "gguf": options.gguf, **planned.result()}
