"""Which packed kind a matrix gets, and how the kernels here lay it out."""

from typing import Any

import torch
from torch import Tensor

from sparsedraft.maths.masks import obeys
from sparsedraft.maths.pattern import Pattern
from sparsedraft.native.extension import extension, fastest
from sparsedraft.native.packed import TYPES, Entry

DENSE = 0.9  # from this density on the places cost more than the zeros save
NATIVE_NAMES = {dtype: "i8" if name == "int8" else name for name, dtype in TYPES.items()}  # of the kernels' values


def kind_of(weight: Tensor, claimed: str | None = None) -> str:
    """The kind that `weight` [rows, columns] is packed as: the sparsest of 2:4 and N:8 that it obeys, else by density.

    `claimed` is the pattern its checkpoint says; one of another M (such as 8:16) is kept on disk.
    """
    kept = weight != 0
    density = float(kept.float().mean())
    if weight.shape[1] % 8 == 0:
        n = max(1, int(kept.view(weight.shape[0], -1, 8).sum(-1).max()))
        # places of N:8 that stay empty cost as much as values: worth it while few are
        if n < 8 and density >= 0.9 * n / 8:
            return "2:4" if n == 4 and obeys(weight, Pattern(2, 4)) else f"{n}:8"
    if claimed not in (None, "unstructured", "dense") and obeys(weight, Pattern.parse(claimed)):
        return claimed
    return "dense" if density > DENSE else "bitmask"


def window_up_to() -> float:
    """Up to this density a sliding window beats a mask of bits, which AVX-512 spreads 64 at once."""
    return 0.2 if fastest() in ("avx512", "amx") else 0.4


def layout_of(kind: str, density: float, columns: int) -> tuple[str, int]:
    """(the native layout of a matrix packed as `kind`, its N)."""
    if kind == "2:4":
        return "2:4", 2
    if kind.endswith(":8"):
        return "N:8", int(kind.removesuffix(":8"))
    if kind == "dense" or density > DENSE:
        return "dense", 0
    return ("window" if density <= window_up_to() and columns <= 65472 else "bitmask"), 0


def lay_out(values: Tensor, scale: Tensor | None, kind: str) -> tuple[Any, str]:
    """(the extension's matrix of `values` [rows, columns] packed as `kind`, how it runs, such as "2:4 i8").

    `scale` [rows] is that of int8. Raises ValueError where the values do not fit the kind.
    """
    density = float(torch.count_nonzero(values)) / values.numel()
    layout, n, runs = laid_out(entry_of(values, kind), density)
    scales = None if scale is None else scale.contiguous().float().numpy()
    return extension().matrix(raw(values), NATIVE_NAMES[values.dtype], layout, n, scales), runs


def described(values: Tensor, kind: str, density: float) -> str:
    """How `lay_out` lays `values` out, such as "2:4 i8"."""
    return laid_out(entry_of(values, kind), density)[2]


def entry_of(values: Tensor, kind: str) -> Entry:
    """The header's entry of a matrix whose `values` [rows, columns] are packed as `kind`."""
    named = {dtype: name for name, dtype in TYPES.items()}
    return Entry(kind, named[values.dtype], *values.shape)


def laid_out(entry: Entry, density: float) -> tuple[str, int, str]:
    """(the native layout of a matrix of which `density` is not zero, its N, how it runs, such as "2:4 i8")."""
    named = NATIVE_NAMES[TYPES[entry.values]]
    # sparse layouts hold 16 bits or fewer
    layout, n = ("dense", 0) if named == "f32" else layout_of(entry.kind, density, entry.columns)
    return layout, n, f"{entry.kind if layout == 'N:8' else layout} {named}"


def raw(values: Tensor) -> Any:
    """The bits of `values` as a numpy array, 16-bit floats as int16: numpy has no bfloat16."""
    values = values.contiguous()
    return (values.view(torch.int16) if values.element_size() == 2 else values).numpy()
