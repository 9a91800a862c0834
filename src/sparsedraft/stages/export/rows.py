"""Turns a matrix into the rows of a GGUF file, as its type there says, some rows at a time."""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.quantization import Codes, int4_codes
from sparsedraft.models.gguf import write_blocks
from sparsedraft.models.gguf.write_blocks import BLOCK, FLOATS, Stored
from sparsedraft.native.stored_matrix import StoredMatrix
from sparsedraft.stages.export.source import finite

ROWS = 1024  # at a time: float32 copies of a whole embedding would take several times its size
PLAIN = {"f32": Kind.BF16, "bf16": Kind.BF16}  # of the rest F16, which has more digits


@dataclass
class Tally:
    """What is counted while the matrices of the layers are written."""

    weights: int = 0
    zeros: int = 0
    scale_change: float = 0.0  # the largest of int8's scales, relative


def kind_of(wanted: str, stored: str, columns: int, ends: bool) -> Kind:
    """The type of a matrix in the file, whose values are `stored` in the checkpoint; `ends`: embedding or head.

    Rows that are no whole blocks are kept as floats of 16 bits, as llama-quantize does.
    """
    if wanted == "bf16":
        return Kind.BF16
    if columns % BLOCK:
        return PLAIN.get(stored, Kind.F16)
    return Kind.Q8_0 if wanted == "q8_0" or (ends and stored != "int4") else Kind.Q4_0


def rows_of(name: str, stored: StoredMatrix, kind: Kind, order: Tensor, tally: Tally) -> NDArray[np.uint8]:
    """The matrix `name` as uint8 [rows, bytes of a row], its rows in this `order`; what was written is counted.

    UserError for weights that are not finite or that the type does not hold.
    """
    out = np.empty((len(order), write_blocks.row_bytes(kind, stored.shape[1])), np.uint8)
    for start in range(0, len(order), ROWS):
        part = stored.rows(order[start : start + ROWS])
        try:
            written, change = _written(name, part, kind)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        out[start : start + ROWS] = written.data
        tally.weights += part.size
        tally.zeros += written.zeros
        tally.scale_change = max(tally.scale_change, change)
    return out


def _written(name: str, part: StoredMatrix, kind: Kind) -> tuple[Stored, float]:
    """(rows as the file has them, the largest relative change of their scales)."""
    if kind in FLOATS:
        return write_blocks.floats(part.weight(), kind), 0.0
    if part.type == kind.name.lower():  # blocks of a GGUF file
        return Stored(part.values.numpy(), part.size - part.nonzero), 0.0
    if part.type == "int4" and part.scale is not None:
        codes = Codes(part.values, part.scale, part.group)
        return (write_blocks.q4_0 if kind == Kind.Q4_0 else write_blocks.q8_0_of_int4)(codes), 0.0
    if part.type == "int8" and part.scale is not None and kind == Kind.Q8_0:
        return write_blocks.q8_0_of_int8(part.values, part.scale)
    weight = finite(name, part.weight())
    return (write_blocks.q4_0(int4_codes(weight)) if kind == Kind.Q4_0 else write_blocks.q8_0_of_floats(weight)), 0.0
