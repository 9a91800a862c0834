"""Which layout a matrix gets on this CPU, and matrices laid out for the kernels (csrc/layout)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsedraft.native.extension import extension, fastest
from sparsedraft.native.packed_format import DENSE, VALUE_TYPES, MatrixEntry

# of the types of values, as the extension calls them
EXTENSION_NAMES = {dtype: "i8" if name == "int8" else name for name, dtype in VALUE_TYPES.items()}
WINDOW_COLUMNS = 65472  # at most: padded to 64, a window's column fits in 16 bits


@dataclass(frozen=True)
class Layout:
    """How the kernels read a matrix."""

    name: str  # as the extension calls it: dense, 2:4, N:8, bitmask or window
    n: int  # of N:8
    values: str  # the type of values, as the extension calls it
    label: str  # for people, such as "2:4 i8"


def window_up_to() -> float:
    """The density up to which windows beat a bitmask, whose values AVX-512 spreads 64 at a time."""
    return 0.2 if fastest() in ("avx512", "amx") else 0.4


def layout_of(kind: str, density: float, columns: int) -> tuple[str, int]:
    """(the name of the layout of a matrix packed as `kind`, of which `density` is not zero; its N)."""
    if kind == "2:4":
        return "2:4", 2
    if kind.endswith(":8"):
        return "N:8", int(kind.removesuffix(":8"))
    if kind == "dense" or density > DENSE:
        return "dense", 0
    return ("window" if density <= window_up_to() and columns <= WINDOW_COLUMNS else "bitmask"), 0


def choose(entry: MatrixEntry, density: float) -> Layout:
    """The layout of the matrix that `entry` describes, of which `density` is not zero."""
    values = EXTENSION_NAMES[VALUE_TYPES[entry.values]]
    # sparse layouts hold 16 bits or fewer
    name, n = ("dense", 0) if values == "f32" else layout_of(entry.kind, density, entry.columns)
    return Layout(name, n, values, f"{entry.kind if name == 'N:8' else name} {values}")


def density_of(values: Tensor) -> float:
    return float(torch.count_nonzero(values)) / values.numel()


def lay_out(values: Tensor, scale: Tensor | None, kind: str) -> tuple[Any, str]:
    """(the extension's matrix of `values` [rows, columns] packed as `kind`, the label of its layout).

    `scale` [rows] is that of int8. Raises ValueError where the values do not fit the kind.
    """
    layout = choose(MatrixEntry.describe(values, kind), density_of(values))
    scales = None if scale is None else scale.contiguous().float().numpy()
    return extension().matrix(raw(values), layout.values, layout.name, layout.n, scales), layout.label


def raw(values: Tensor) -> Any:
    """The bits of `values` as a numpy array, 16-bit floats as int16: numpy has no bfloat16."""
    values = values.contiguous()
    return (values.view(torch.int16) if values.element_size() == 2 else values).numpy()
