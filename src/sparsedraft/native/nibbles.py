"""Codes of 4 bits, two in a byte: the first in the low half. A code from -8 to 7 is kept in two's complement."""

import torch
from torch import Tensor


def pack_nibbles(codes: Tensor) -> Tensor:
    """int8 [..., n] from -8 to 7 as bytes [..., ⌈n / 2⌉], the last filled up with a zero."""
    pairs = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2)).unflatten(-1, (-1, 2)).view(torch.uint8)
    return (pairs[..., 0] & 15) | (pairs[..., 1] << 4)


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """The first `count` codes of what `pack_nibbles` gave: int8 [..., count]."""
    out = torch.empty(*packed.shape, 2, dtype=torch.int8)
    out[..., 0] = packed.view(torch.int8) << 4
    out[..., 0] >>= 4  # arithmetic shifts: the sign is kept
    torch.bitwise_right_shift(packed.view(torch.int8), 4, out=out[..., 1])
    return out.flatten(-2)[..., :count].contiguous()
