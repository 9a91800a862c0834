"""Matrices laid out for the kernels (csrc/layout)."""

from typing import Any

import torch
from torch import Tensor

from sparsedraft.native.extension import extension
from sparsedraft.native.packed_format import VALUE_TYPES, MatrixEntry

# of the types of values, as the extension calls them
EXTENSION_NAMES = {dtype: "i8" if name == "int8" else name for name, dtype in VALUE_TYPES.items()}


def density_of(values: Tensor) -> float:
    return float(torch.count_nonzero(values)) / values.numel()


def lay_out(values: Tensor, scale: Tensor | None, kind: str) -> tuple[Any, str]:
    """(the extension's matrix of `values` [rows, columns] packed as `kind`, the label of its layout).

    `scale` [rows] is that of int8. Raises ValueError where the values do not fit the kind.
    """
    layout = MatrixEntry.describe(values, kind).layout(density_of(values))
    scales = None if scale is None else scale.contiguous().float().numpy()
    return extension().matrix(raw(values), layout.values, layout.name, layout.n, scales), layout.label


def raw(values: Tensor) -> Any:
    """The bits of `values` as a numpy array, 16-bit floats as int16: numpy has no bfloat16."""
    values = values.contiguous()
    return (values.view(torch.int16) if values.element_size() == 2 else values).numpy()
