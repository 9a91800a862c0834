"""Parameters that may be sharded over processes: the part in this process, the whole, and the way between them.

FSDP2 makes each parameter a DTensor. With one process or DDP it is a plain tensor, and every function here returns its
argument. Elementwise work (AdamW, masks) runs on the local part; files hold the whole, so that a file does not depend
on how many processes wrote it.
"""

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` in this process; writing to it writes to `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of the tensor `whole` (the same in every process), cut as `like` is and on its device."""
    if not isinstance(like, DTensor):
        return whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


@torch.no_grad()
def whole(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor, of which each process holds a `part` cut as `like` is. All processes must call it together."""
    if not isinstance(like, DTensor):
        return part
    placed = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return placed.full_tensor()


def value(scalar: Tensor) -> float:
    """The number in `scalar`. All processes must call it together."""
    return float(scalar.full_tensor() if isinstance(scalar, DTensor) else scalar)


def reshard(model: nn.Module) -> None:
    """Free the gathered parameters that FSDP2 keeps after a forward pass without a backward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
