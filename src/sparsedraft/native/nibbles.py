"""Codes of 4 bits, two in a byte: the first in the low half. A code from -8 to 7 is kept in two's complement."""

import torch
from torch import Tensor

CHUNK = 4096  # rows that are looked at at once


def pack_nibbles(codes: Tensor) -> Tensor:
    """int8 [..., n] from -8 to 7 as bytes [..., ⌈n / 2⌉], the last filled up with a zero."""
    pairs = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2)).unflatten(-1, (-1, 2)).view(torch.uint8)
    return (pairs[..., 0] & 15) | (pairs[..., 1] << 4)


def nonzero_nibbles(packed: Tensor, columns: int) -> int:
    """How many codes of the matrix that `pack_nibbles` gave [rows, ⌈columns / 2⌉] are not zero."""
    count = 0
    for part in packed.split(CHUNK):
        high = part if columns % 2 == 0 else part[:, :-1]  # a half that fills a byte up is no code
        count += int(torch.count_nonzero(part & 15)) + int(torch.count_nonzero(high >> 4))
    return count


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """The first `count` codes of what `pack_nibbles` gave: int8 [..., count]."""
    out = torch.empty(*packed.shape, 2, dtype=torch.int8)
    signed = packed.view(torch.int8)
    torch.bitwise_left_shift(signed, 4, out=out[..., 0])
    out[..., 0] >>= 4  # arithmetic shifts: the sign is kept
    torch.bitwise_right_shift(signed, 4, out=out[..., 1])
    return out.flatten(-2)[..., :count].contiguous()
