"""How the native engine would run a matrix, for people to read; needs no extension."""

from pathlib import Path

import torch
from torch import Tensor

from sparsedraft.models import checkpoint
from sparsedraft.native import kinds
from sparsedraft.native.model import unsupported
from sparsedraft.native.weights import FLOATS


def runs_here(folder: Path) -> bool:
    """Whether the engine runs the architecture of the checkpoint in `folder`."""
    config = checkpoint.read_config(folder)
    return checkpoint.is_decoder_lm(config) and unsupported(config) is None


def packed(values: Tensor, kind: str) -> str:
    """Of a matrix packed as `kind`: its layout and the type of its values."""
    density = float(torch.count_nonzero(values)) / values.numel()
    return kinds.described(values, kind, density)


def plain(weight: Tensor, pruned: bool) -> str | None:
    """Of a checkpoint's matrix; one that the checkpoint does not call `pruned` runs dense."""
    return packed(weight, kinds.kind_of(weight) if pruned else "dense") if weight.dtype in FLOATS else None
