"""The packed form of a matrix: values that are there, and where; canonical, row by row, nothing of any one machine.

    dense      values [rows, columns]
    N:M        values [rows, columns/M · N], and index: for each its place in its group of M, ascending, place_bits(M)
               bits each, little end first, every row filled up to whole bytes (uint8 [rows, ...]). A group with fewer
               than N values has zeros at the lowest places that are free.
    bitmask    values [how many there are], and index: one bit for each weight, little end first (uint8
               [rows, ⌈columns/8⌉])

Values are float16, bfloat16, float32, or int8 with `scale` (float32 [rows]): weight = value · scale.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.masks import obeys
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import codes

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
LARGEST = 1 << 28  # rows or columns of a matrix: more than any has, and products stay in 64 bits
GROUPS = range(2, 257)  # the M of N:M


@dataclass(frozen=True)
class Entry:
    """What the header says of one matrix. `kind`: dense, bitmask or N:M; `values`: a key of TYPES."""

    kind: str
    values: str
    rows: int
    columns: int

    @classmethod
    def of(cls, name: str, raw: Any) -> "Entry":
        """The entry `raw` of a header, checked; UserError where it is not one that this version reads."""

        def wrong(field: str, value: object, mend: str) -> UserError:
            return UserError(
                f"packed matrix {name} has {field} {repr(value)[:200]}, {mend}: pack the checkpoint again."
            )

        if not isinstance(raw, dict) or set(raw) != {"kind", "values", "rows", "columns"}:
            raise wrong("the entry", raw, "not kind, values, rows and columns")
        for field in ("rows", "columns"):
            if type(raw[field]) is not int or not 0 < raw[field] < LARGEST:
                raise wrong(field, raw[field], f"not a number from 1 to {LARGEST - 1}")
        if not isinstance(raw["values"], str) or raw["values"] not in TYPES:
            raise wrong("values", raw["values"], f"not one of {', '.join(TYPES)}")
        entry = cls(**raw)
        if entry.kind not in ("dense", "bitmask"):
            try:
                pattern = Pattern.parse(entry.kind) if isinstance(entry.kind, str) else Pattern()
            except UserError:
                pattern = Pattern()
            if pattern.m not in GROUPS:
                raise wrong("kind", entry.kind, "not dense, bitmask or N:M")
            if entry.columns % pattern.m:
                raise wrong("columns", entry.columns, f"which {entry.kind} does not divide")
        return entry

    @property
    def pattern(self) -> Pattern:
        return Pattern() if self.kind in ("dense", "bitmask") else Pattern.parse(self.kind)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def index_shape(self) -> tuple[int, int] | None:
        """Shape of the index; None where there is none."""
        if self.kind == "dense":
            return None
        m = self.pattern
        bits = self.columns if self.kind == "bitmask" else self.columns // m.m * m.n * place_bits(m.m)
        return self.rows, -(-bits // 8)


def place_bits(m: int) -> int:
    """Bits of a place in a group of `m`: 2, 4 or 8, so that none spans two bytes."""
    return 2 if m <= 4 else 4 if m <= 16 else 8


def pack(weight: Tensor, kind: str, values: str) -> tuple[Entry, dict[str, Tensor]]:
    """`weight` [rows, columns] as an entry and its tensors (values, index, scale where there are any).

    Raises UserError where the weight breaks the N:M, or does not fit float16.
    """
    entry = Entry(kind, values, *weight.shape)
    kept = weight != 0
    out: dict[str, Tensor] = {}
    if values == "int8":
        q, scale = codes(weight, "int8")
        typed, out["scale"] = q[:, 0], scale[:, 0, 0].contiguous()
    else:
        typed = weight.to(TYPES[values])
        if not bool(torch.isfinite(typed).all()):
            raise UserError(
                f"a weight of {float(weight.float().abs().max()):g} does not fit {values}: give --weights bf16."
            )
    if kind == "dense":
        return entry, {"values": typed.contiguous(), **out}
    if kind == "bitmask":
        return entry, {"values": typed[kept], "index": pack_bits(kept.to(torch.uint8), 1), **out}
    pattern = entry.pattern
    if not obeys(weight, pattern):
        raise UserError(f"the weight is not {kind}: pack it with the pattern that it has.")
    groups = (entry.rows, entry.columns // pattern.m, pattern.m)
    first = (~kept).view(groups).to(torch.uint8).argsort(dim=-1, stable=True)[..., : pattern.n]
    places = first.sort(dim=-1).values
    out |= {"values": typed.reshape(groups).gather(-1, places).flatten(1).contiguous()}
    out["index"] = pack_bits(places.flatten(1).to(torch.uint8), place_bits(pattern.m))
    return entry, out


def unpack(name: str, entry: Entry, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """(values [rows, columns] with zeros where nothing was kept, and the scale [rows] of int8).

    Everything is checked before it is used. UserError, naming the matrix, where sizes, types or places are wrong.
    """
    shape = entry.index_shape()
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...] | None]] = {"values": (TYPES[entry.values], None)}
    if shape is not None:
        wanted["index"] = (torch.uint8, shape)
    if entry.values == "int8":
        wanted["scale"] = (torch.float32, (entry.rows,))
    if set(tensors) != set(wanted):
        raise _damaged(name, f"holds {', '.join(sorted(tensors))} and not {', '.join(sorted(wanted))}")
    for key, (dtype, size) in wanted.items():
        if tensors[key].dtype != dtype or (size is not None and tuple(tensors[key].shape) != size):
            raise _damaged(name, f"has {key} of {tensors[key].dtype} {list(tensors[key].shape)}")
    values, scale = tensors["values"], tensors.get("scale")
    if scale is not None and not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise _damaged(name, "has a scale that is not a positive number")
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        raise _damaged(name, "has a value that is not finite")
    size = (entry.rows, entry.columns)
    if entry.kind == "dense":
        if tuple(values.shape) != size:
            raise _damaged(name, f"has values {list(values.shape)}")
        return values, scale
    out = torch.zeros(size, dtype=values.dtype)
    if entry.kind == "bitmask":
        kept = unpack_bits(tensors["index"], 1, entry.columns).bool()
        if values.dim() != 1 or values.numel() != int(kept.sum()):
            raise _damaged(name, f"has {values.numel()} values for a mask of {int(kept.sum())}")
        out[kept] = values
        return out, scale
    m = entry.pattern
    count = entry.columns // m.m * m.n
    if tuple(values.shape) != (entry.rows, count):
        raise _damaged(name, f"has values {list(values.shape)}")
    places = unpack_bits(tensors["index"], place_bits(m.m), count).view(entry.rows, -1, m.n).short()  # 256 is no byte
    if not bool((places < m.m).all()) or not bool((places[..., 1:] > places[..., :-1]).all()):
        raise _damaged(name, f"has places that are not {m.n} different ones of {m.m}, in order")
    grouped = out.view(entry.rows, -1, m.m)
    grouped.scatter_(-1, places.long(), values.view(entry.rows, -1, m.n))
    return out, scale


def _damaged(name: str, what: str) -> UserError:
    return UserError(f"packed matrix {name} {what}: the file is damaged, pack the checkpoint again.")


def pack_bits(numbers: Tensor, bits: int) -> Tensor:
    """uint8 [rows, n], each below 2^bits, as bytes [rows, ⌈n · bits / 8⌉], little end first."""
    per = 8 // bits
    padded = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % per)).view(numbers.shape[0], -1, per)
    shifts = torch.arange(per, dtype=torch.uint8) * bits
    return (padded << shifts).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` numbers of each row of what `pack_bits` made: uint8 [rows, count]."""
    shifts = torch.arange(8 // bits, dtype=torch.uint8) * bits
    return ((packed[..., None] >> shifts) & ((1 << bits) - 1)).flatten(1)[:, :count].contiguous()


def size(tensors: dict[str, Tensor]) -> int:
    """Bytes on disk."""
    return sum(t.numel() * t.element_size() for t in tensors.values())
