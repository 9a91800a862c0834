"""Matrices laid out for the kernels (csrc/layout)."""

from typing import Any

import torch
from torch import Tensor

from sparsedraft.native.extension import extension
from sparsedraft.native.layout_choice import EXTENSION_NAMES
from sparsedraft.native.nibbles import pack_nibbles
from sparsedraft.native.packed_format import MatrixEntry
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
    return extension().matrix(values, *fields), layout.label


def embedding(stored: StoredMatrix) -> dict[str, Any]:
    """The embedding as the extension's model takes it; its arrays must outlive the model."""
    fields: dict[str, Any] = {"type": EXTENSION_NAMES.get(stored.type, stored.type)}
    if stored.scale is not None and stored.group:
        groups = stored.scale.contiguous().view(torch.uint16).numpy()
        return fields | {"values": pack_nibbles(stored.values).numpy(), "groups": groups, "group": stored.group}
    scale = None if stored.scale is None else stored.scale.contiguous().float().numpy()
    return fields | {"values": raw(stored.values), "scale": scale}


def raw(values: Tensor) -> Any:
    """The bits of `values` as a numpy array, 16-bit floats as int16: numpy has no bfloat16."""
    values = values.contiguous()
    return (values.view(torch.int16) if values.element_size() == 2 else values).numpy()
