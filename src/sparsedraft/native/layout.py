"""Matrices laid out for the kernels (csrc/layout)."""

from typing import Any

import torch
from torch import Tensor

from sparsedraft.native.extension import extension
from sparsedraft.native.layout_choice import EXTENSION_NAMES
from sparsedraft.native.packed_format import MatrixEntry, nonzero_of_dense
from sparsedraft.native.stored_matrix import StoredMatrix


def lay_out(stored: StoredMatrix, kind: str) -> tuple[Any, str]:
    """(the extension's matrix of what is `stored` as `kind`, the label of its layout).

    Raises ValueError where the values do not fit the kind.
    """
    layout = MatrixEntry.describe(stored, kind).layout(stored.density)
    scale = None if stored.scale is None else stored.scale.contiguous()
    rows = scale.float().numpy() if scale is not None and not stored.group else None
    groups = scale.view(torch.uint16).numpy() if scale is not None and stored.group else None
    values = raw(stored.values)
    fields = (layout.values, layout.name, layout.n, rows, groups, stored.group, stored.activations)
    columns = stored.shape[1] if stored.blocks else 0
    return extension().matrix(values, *fields, columns=columns), layout.label


def lay_out_nibbles(name: str, entry: MatrixEntry, tensors: dict[str, Tensor]) -> tuple[Any, str, int]:
    """(the extension's matrix of dense int4, the label of its layout, its number of non-zeros).

    The codes are read from the file's own bytes. UserError where the tensors do not fit the entry.
    """
    nonzero = nonzero_of_dense(name, entry, tensors)
    layout = entry.layout(nonzero / (entry.rows * entry.columns))
    groups = tensors["scale"].contiguous().view(torch.uint16).numpy()
    fields = (layout.values, layout.name, layout.n, None, groups, entry.group)
    return extension().matrix(raw(tensors["values"]), *fields, columns=entry.columns), layout.label, nonzero


def embedding(entry: MatrixEntry, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The dense embedding as the extension's model takes it, which reads a row for each token.

    The values are read where they lie: `tensors` that are mapped stay in their file.
    """
    scale = tensors["scale"].contiguous() if "scale" in tensors else None
    fields = {"type": EXTENSION_NAMES.get(entry.values, entry.values), "values": raw(tensors["values"])}
    if scale is not None and entry.group:
        return fields | {"groups": scale.view(torch.uint16).numpy(), "group": entry.group}
    return fields | {"scale": None if scale is None else scale.float().numpy()}


def raw(values: Tensor) -> Any:
    """The bits of `values` as a numpy array, 16-bit floats as int16: numpy has no bfloat16."""
    values = values.contiguous()
    return (values.view(torch.int16) if values.element_size() == 2 else values).numpy()
