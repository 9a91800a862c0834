"""Which layout the native engine would give a matrix, for people to read; needs no extension."""

from pathlib import Path

from torch import Tensor

from sparsedraft.models import checkpoint
from sparsedraft.native.architecture import unsupported
from sparsedraft.native.packed_format import MatrixEntry, kind_of
from sparsedraft.native.stored_matrix import FLOATS, StoredMatrix


def runs_natively(folder: Path) -> bool:
    """Whether the engine runs the architecture of the checkpoint in `folder`."""
    config = checkpoint.read_config(folder)
    return checkpoint.is_decoder_lm(config) and unsupported(config) is None


def of_packed(stored: StoredMatrix, kind: str) -> str:
    """Layout and type of values of a matrix packed as `kind`, such as "2:4 i8"."""
    return MatrixEntry.describe(stored, kind).layout(stored.density).label


def of_plain(weight: Tensor, pruned: bool) -> str | None:
    """The same of a checkpoint's matrix, dense unless the checkpoint calls it `pruned`; None: the engine cannot."""
    if weight.dtype not in FLOATS:
        return None
    return of_packed(StoredMatrix(weight), kind_of(weight) if pruned else "dense")
