"""The matrices of a GGUF file packed as they are: no weight is rounded again."""

from pathlib import Path

import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.quantization import GROUP, Codes
from sparsedraft.models.gguf.blocks import BlockFile
from sparsedraft.native.blocks import BLOCKS
from sparsedraft.native.packed_format import MatrixEntry, pack_matrix
from sparsedraft.native.stored_matrix import VALUE_TYPES

FLOATS = ("f32", "f16", "bf16")
KEPT = (*FLOATS, "q4_0", *BLOCKS)  # types of a GGUF file whose weights stay as they are


def block_file(model: str) -> BlockFile:
    """The GGUF file that `model` names; UserError where it names none, or one that cannot be kept as it is."""
    path = Path(model).expanduser()
    if path.suffix != ".gguf":
        raise UserError(f"model {model} is no .gguf file, whose weights --weights stored keeps: give int8 or int4.")
    return BlockFile(path)


def check_kept(file: BlockFile, linears: list[str]) -> None:
    """UserError for a matrix whose type is not kept."""
    for linear in linears:
        kind = file.kind(linear)
        if kind is None:
            raise UserError(f"model {file.path} lacks {linear}: give --weights int8 or int4.")
        if kind not in KEPT:
            raise UserError(
                f"model {file.path} has {linear} as {kind}: --weights stored keeps {', '.join(KEPT)}; "
                "give --weights int8 or int4."
            )


def kept_matrix(file: BlockFile, linear: str, rows: Tensor | None = None) -> tuple[MatrixEntry, dict[str, Tensor]]:
    """The matrix that a checkpoint calls `linear`, or these `rows` of it, as an entry and its tensors.

    UserError where it holds numbers that are not finite.
    """
    blocks = file.of(linear)
    assert blocks is not None  # check_kept has seen it
    values = blocks.values if rows is None else blocks.values[rows]
    if blocks.kind in FLOATS:
        return pack_matrix(values.view(VALUE_TYPES[blocks.kind]), "dense", blocks.kind)
    if blocks.kind == "q4_0":
        codes = codes_of_q4_0(values)
        return pack_matrix(codes.codes, "dense", "int4", codes)
    return MatrixEntry("dense", blocks.kind, len(values), blocks.columns), {"values": values}


def codes_of_q4_0(values: Tensor) -> Codes:
    """Blocks of q4_0 uint8 [rows, bytes] as codes of int4: the same codes, and the same scale for each 32 inputs.

    A block: a float16, and 16 bytes with code + 8 of the first 16 inputs in their low halves, of the others in the high
    ones. Where the scale is 0 all codes become 0, and the scale 1, as int4 has no scale of 0.
    """
    apart = values.unflatten(1, (-1, 18))
    scale = apart[..., :2].contiguous().view(torch.float16)[..., 0]
    nibbles = apart[..., 2:]
    codes = torch.cat([nibbles & 15, nibbles >> 4], dim=-1).to(torch.int8) - 8
    codes[scale == 0] = 0
    return Codes(codes.flatten(1), torch.where(scale == 0, 1, scale), GROUP)
