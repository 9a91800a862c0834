"""Parameters that may be sharded over processes: the part that lies here, the whole, and the way between them.

FSDP2 makes each parameter a DTensor; with one process or DDP it is a plain tensor, and everything here hands back what
it was given. Elementwise work (AdamW, masks) is done on the local part, files hold the whole, so that a file knows
nothing of how many processes wrote it.
"""

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that lies in this process; writing to it writes to `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of the tensor `whole` (the same in every process), cut as `like` is and on its device."""
    if not isinstance(like, DTensor):
        return whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


@torch.no_grad()
def whole(part: Tensor, like: Tensor) -> Tensor:
    """The whole of which each process holds a `part`, cut as `like` is. All processes must call it together."""
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
    """Give up gathered parameters: after a forward pass without a backward pass FSDP2 keeps some of them in place."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
