"""One torch operator for products with laid-out matrices, which eager code and torch.compile call alike.

A matrix of the native runtime is no tensor. `keep` files it under a number, and the operator takes that number as a
tensor: so the graphs of a model's layers are the same but for their inputs.
"""

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sparsedraft.integrations.vllm.threads import team
from sparsedraft.native import extension as native

_kept: list[tuple[list[Any], int, int]] = []  # laid-out matrices, all of their rows, the columns of each
_library = torch.library.Library("sparsedraft", "DEF")
_library.define("multiply(Tensor x, Tensor matrices, int rows) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def keep(matrices: list[Any]) -> Tensor:
    """The number, an int64 tensor [], by which `multiply` finds these laid-out matrices of equal columns.

    They are kept as long as the process runs.
    """
    _kept.append((matrices, sum(matrix.rows for matrix in matrices), matrices[0].columns))
    return torch.tensor(len(_kept) - 1, dtype=torch.int64)


def multiply(x: Tensor, matrices: Tensor, rows: int) -> Tensor:
    """W x of matrices side by side: [..., rows] for x [..., columns] on the CPU, in its dtype; computed in float32.

    `matrices` is a number that `keep` gave, and `rows` counts those of all of its matrices.
    """
    return torch.ops.sparsedraft.multiply(x, matrices, rows)


def _multiply(x: Tensor, matrices: Tensor, rows: int) -> Tensor:
    kept, all_rows, columns = _kept[int(matrices)]
    if all_rows != rows or columns != x.shape[-1]:
        raise ValueError(f"x of {x.shape[-1]} columns and {rows} rows do not fit matrix {int(matrices)}")
    inputs = x.to(torch.float32).contiguous()
    y = torch.empty((*x.shape[:-1], rows), dtype=torch.float32)
    if tokens := inputs.numel() // columns:
        pool = _pool(os.getpid(), torch.get_num_threads())
        native.extension().multiply_at(kept, inputs.data_ptr(), tokens, y.data_ptr(), pool)
    return y.to(x.dtype)


def _shape(x: Tensor, matrices: Tensor, rows: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


@cache  # never emptied: a forked process has no copies of the threads
def _pool(process: int, threads: int) -> Any:
    address = team()
    return native.extension().Pool(threads, address) if address else native.pool(threads)


_library.impl("multiply", _multiply, "CPU")
torch.library.register_fake("sparsedraft::multiply", _shape, lib=_library)
