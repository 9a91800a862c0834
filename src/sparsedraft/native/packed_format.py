"""The packed format of one matrix: its non-zero values and their places, row by row, independent of any machine.

Its `kind` says which weights are stored:

    dense      values [rows, columns]
    N:M        values [rows, columns/M · N], and index: the place of each value in its group of M, ascending, in
               place_bits(M) bits, lowest bits first, each row filled up to whole bytes (uint8 [rows, ...]). A group
               with fewer than N values has zeros at the lowest free places.
    bitmask    values [number of non-zeros], and index: one bit for each weight, lowest bit first (uint8
               [rows, ⌈columns/8⌉])

Values are float16, bfloat16, float32, or int8 with `scale` (float32 [rows]): weight = value · scale.

int4 is stored more densely. Values are codes of 4 bits, two in a byte (see native.nibbles): dense, each row filled up
to whole bytes; else all of the matrix one behind the other. The index of N:M, too, is one bit for each weight. `scale`
is float16 [rows, ⌈columns / group⌉]: each `group` consecutive inputs share one.

The types of native.blocks are those of GGUF files: values are the bytes of a row's blocks, and always dense. Of these
only q6_k is made here, for heads and embeddings; the others are read from such files.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.masks import obeys, pack_mask, unpack_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import GROUPS as SCALE_GROUPS
from sparsedraft.maths.quantization import Codes, group_of, int4_codes, int8_codes
from sparsedraft.native import blocks
from sparsedraft.native.layout_choice import Layout, choose, kind_of_mask, takes_bytes
from sparsedraft.native.nibbles import nonzero_nibbles, pack_nibbles, unpack_nibbles
from sparsedraft.native.q6_k import q6_k
from sparsedraft.native.stored_matrix import VALUE_TYPES, StoredMatrix

PARTS = ("values", "index", "scale")  # the tensors of a matrix
LARGEST = 1 << 28  # rows or columns of a matrix: more than any has, and products stay in 64 bits
CHECKED = 4096  # rows that are checked at once: of a whole matrix that would take twice its memory
GROUPS = range(2, 257)  # the M of N:M


@dataclass(frozen=True)
class MatrixEntry:
    """What the header says of one matrix. `kind`: dense, bitmask or N:M; `values`: a key of VALUE_TYPES.

    `group`, of int4 only: so many consecutive inputs share a scale. `activations`, of int8 only (see takes_bytes): bits
    of the inputs that it is multiplied with, 16 or 8.
    """

    kind: str
    values: str
    rows: int
    columns: int
    group: int = 0
    activations: int = 16

    @classmethod
    def parse(cls, name: str, raw: Any) -> "MatrixEntry":
        """The entry `raw` of a header; UserError, naming the matrix, where this version cannot read it."""

        def wrong(field: str, value: object, mend: str) -> UserError:
            return UserError(
                f"packed matrix {name} has {field} {repr(value)[:200]}, {mend}: pack the checkpoint again."
            )

        if not isinstance(raw, dict) or set(raw) - {"group", "activations"} != {"kind", "values", "rows", "columns"}:
            raise wrong("the entry", raw, "not kind, values, rows and columns")
        for field in ("rows", "columns"):
            if type(raw[field]) is not int or not 0 < raw[field] < LARGEST:
                raise wrong(field, raw[field], f"not a number from 1 to {LARGEST - 1}")
        if not isinstance(raw["values"], str) or raw["values"] not in VALUE_TYPES:
            raise wrong("values", raw["values"], f"not one of {', '.join(VALUE_TYPES)}")
        if raw["values"] == "int4" and (type(raw.get("group")) is not int or raw["group"] not in SCALE_GROUPS):
            raise wrong("group", raw.get("group"), f"not one of {', '.join(map(str, SCALE_GROUPS))}")
        if raw["values"] != "int4" and "group" in raw:
            raise wrong("group", raw["group"], f"which {raw['values']} does not have")
        eight = type(raw.get("activations")) is int and raw["activations"] == 8
        if "activations" in raw and not (eight and takes_bytes(raw["kind"], raw["values"])):
            raise wrong(
                "activations", raw["activations"], "and only int8 may have them, of 8 bits, not as 2:4, 1:8, 2:8"
            )
        entry = cls(**raw)
        if entry.blocks:
            inputs = blocks.BLOCKS[entry.values].inputs
            if entry.kind != "dense" or entry.columns % inputs:
                raise wrong("the entry", raw, f"and {entry.values} is dense, its columns a multiple of {inputs}")
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

    @classmethod
    def describe(cls, stored: StoredMatrix, kind: str) -> "MatrixEntry":
        """The entry of a matrix that is packed as `kind`."""
        rows, columns = stored.shape
        return cls(kind, stored.type, rows, columns, stored.group, stored.activations)

    @property
    def pattern(self) -> Pattern:
        return Pattern() if self.kind in ("dense", "bitmask") else Pattern.parse(self.kind)

    @property
    def blocks(self) -> str:
        """The type of its blocks, a key of blocks.BLOCKS; empty where it has none."""
        return self.values if self.values in blocks.BLOCKS else ""

    def layout(self, density: float) -> Layout:
        """The layout that the kernels read the matrix in, of which `density` is not zero."""
        return choose(self.kind, self.values, self.columns, density, self.activations)

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        if not self.group:
            del fields["group"]
        if self.activations == 16:
            del fields["activations"]
        return fields

    def index_shape(self) -> tuple[int, int] | None:
        """Shape of the index; None for dense matrices, which have none."""
        if self.kind == "dense":
            return None
        m = self.pattern
        masked = self.kind == "bitmask" or self.values == "int4"
        bits = self.columns if masked else self.columns // m.m * m.n * place_bits(m.m)
        return self.rows, -(-bits // 8)

    def tensor_types(self) -> dict[str, tuple[torch.dtype, tuple[int, ...] | None]]:
        """dtype and shape of each tensor that is stored; the shape of `values` (None) depends on the index."""
        types: dict[str, tuple[torch.dtype, tuple[int, ...] | None]] = {"values": (VALUE_TYPES[self.values], None)}
        if (shape := self.index_shape()) is not None:
            types["index"] = (torch.uint8, shape)
        if self.values == "int8":
            types["scale"] = (torch.float32, (self.rows,))
        if self.values == "int4":
            types["scale"] = (torch.float16, (self.rows, -(-self.columns // self.group)))
        return types


def kind_of(weight: Tensor, claimed: str | None = None) -> str:
    """The kind to pack `weight` [rows, columns] as, where the checkpoint claims the pattern `claimed` (see
    kind_of_mask)."""
    return kind_of_mask((weight != 0).numpy(), claimed)


def place_bits(m: int) -> int:
    """Bits of a place in a group of `m`: 2, 4 or 8, so that none spans two bytes."""
    return 2 if m <= 4 else 4 if m <= 16 else 8


def pack_matrix(
    weight: Tensor, kind: str, values: str, codes: Codes | None = None, activations: int = 16
) -> tuple[MatrixEntry, dict[str, Tensor]]:
    """`weight` [rows, columns] as an entry and its tensors (PARTS, as far as there are any).

    `codes`: of int4, where they are known already; else each group's scale is the one of least squares.
    `activations`: bits of the inputs that the kernels multiply int8 with, 16 or 8; where the kind takes no 8 (see
    takes_bytes) they are 16.
    Raises UserError where the weight breaks the N:M, or does not fit float16.
    """
    if values == "int4":
        return _pack_int4(weight, kind, codes)
    if values == "q6_k":
        return MatrixEntry("dense", values, weight.shape[0], weight.shape[1]), {"values": q6_k(weight)}
    eight = activations == 8 and takes_bytes(kind, values)
    entry = MatrixEntry(kind, values, weight.shape[0], weight.shape[1], activations=8 if eight else 16)
    nonzero = weight != 0
    out: dict[str, Tensor] = {}
    if values == "int8":
        typed, out["scale"] = int8_codes(weight)
    else:
        typed = weight.to(VALUE_TYPES[values])
        if not bool(torch.isfinite(typed).all()):
            raise UserError(
                f"a weight of {float(weight.float().abs().max()):g} does not fit {values}: give --weights bf16."
            )
    if kind == "dense":
        return entry, {"values": typed.contiguous(), **out}
    if kind == "bitmask":
        return entry, {"values": typed[nonzero], "index": pack_mask(nonzero), **out}
    places = _places(nonzero, entry)
    out["values"] = typed.unflatten(1, (-1, entry.pattern.m)).gather(-1, places).flatten(1).contiguous()
    out["index"] = pack_places(places.flatten(1).to(torch.uint8), place_bits(entry.pattern.m))
    return entry, out


def _pack_int4(weight: Tensor, kind: str, codes: Codes | None) -> tuple[MatrixEntry, dict[str, Tensor]]:
    """`pack_matrix` of int4. Of a bitmask, weights whose code is 0 are not stored."""
    if codes is None:
        codes = int4_codes(weight, scale_group(kind))
    entry = MatrixEntry(kind, "int4", weight.shape[0], weight.shape[1], codes.group)
    kept = codes.codes != 0
    if kind == "dense":
        return entry, {"values": pack_nibbles(codes.codes), "scale": codes.scale}
    if kind != "bitmask":
        places = _places(weight != 0, entry)
        kept = torch.zeros_like(kept).unflatten(1, (-1, entry.pattern.m)).scatter_(-1, places, True).flatten(1)
    return entry, {"values": pack_nibbles(codes.codes[kept]), "index": pack_mask(kept), "scale": codes.scale}


def scale_group(kind: str) -> int:
    """Inputs that share a scale of int4 in a matrix of this kind."""
    return group_of(Pattern() if kind in ("dense", "bitmask") else Pattern.parse(kind))


def _places(nonzero: Tensor, entry: MatrixEntry) -> Tensor:
    """The places [rows, groups, N] that N:M keeps, ascending; UserError where a group has more."""
    n, m = entry.pattern.n, entry.pattern.m
    if not obeys(nonzero, entry.pattern):
        raise UserError(f"the weight is not {entry.kind}: pack it with the pattern that it has.")
    nonzero_first = (~nonzero).view(entry.rows, -1, m).to(torch.uint8).argsort(dim=-1, stable=True)
    return nonzero_first[..., :n].sort(dim=-1).values


def unpack_matrix(name: str, entry: MatrixEntry, tensors: dict[str, Tensor]) -> StoredMatrix:
    """The matrix of an entry and its tensors.

    Everything is checked before it is used. UserError, naming the matrix, where sizes, types or places are wrong.
    """
    _check_tensors(name, entry, tensors)
    values, scale = tensors["values"], tensors.get("scale")
    if entry.values == "int4":
        return StoredMatrix(_unpack_int4(name, entry, values, tensors.get("index")), scale, entry.group)
    if entry.kind == "dense":
        _check_dense(name, entry, values)
        return StoredMatrix(values, scale, activations=entry.activations, blocks=entry.blocks)
    unpack = _unpack_bitmask if entry.kind == "bitmask" else _unpack_groups
    return StoredMatrix(unpack(name, entry, values, tensors["index"]), scale, activations=entry.activations)


def nonzero_of_dense(name: str, entry: MatrixEntry, tensors: dict[str, Tensor]) -> int:
    """How many weights of a dense matrix are not zero; what is stored is checked as by `unpack_matrix`."""
    _check_tensors(name, entry, tensors)
    _check_dense(name, entry, tensors["values"])
    if entry.values == "int4":
        return nonzero_nibbles(tensors["values"], entry.columns)
    if entry.blocks:
        return blocks.nonzero(entry.values, tensors["values"])
    return int(torch.count_nonzero(tensors["values"]))


def _check_dense(name: str, entry: MatrixEntry, values: Tensor) -> None:
    width = -(-entry.columns // 2) if entry.values == "int4" else entry.columns
    if entry.blocks:
        width = blocks.row_bytes(entry.values, entry.columns)
    if tuple(values.shape) != (entry.rows, width):
        raise _damaged(name, f"has values {list(values.shape)}")
    if entry.blocks and not all(blocks.finite(entry.values, part) for part in values.split(CHECKED)):
        raise _damaged(name, "has a scale that is not finite")


def _check_tensors(name: str, entry: MatrixEntry, tensors: dict[str, Tensor]) -> None:
    """UserError unless the tensors have the names, types and shapes that the entry needs, and are finite."""
    types = entry.tensor_types()
    if set(tensors) != set(types):
        raise _damaged(name, f"holds {', '.join(sorted(tensors))} and not {', '.join(sorted(types))}")
    for key, (dtype, shape) in types.items():
        if tensors[key].dtype != dtype or (shape is not None and tuple(tensors[key].shape) != shape):
            raise _damaged(name, f"has {key} of {tensors[key].dtype} {list(tensors[key].shape)}")
    values, scale = tensors["values"], tensors.get("scale")
    if scale is not None and entry.values == "int4":
        if not bool((torch.isfinite(scale) & (scale != 0)).all()):
            raise _damaged(name, "has a scale that is 0 or not finite")
    elif scale is not None and not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise _damaged(name, "has a scale that is not a positive number")
    if values.is_floating_point() and not all(bool(torch.isfinite(part).all()) for part in values.split(CHECKED)):
        raise _damaged(name, "has a value that is not finite")


def _unpack_int4(name: str, entry: MatrixEntry, values: Tensor, index: Tensor | None) -> Tensor:
    """The codes int8 [rows, columns]."""
    if index is None:
        _check_dense(name, entry, values)
        return unpack_nibbles(values, entry.columns)
    mask = unpack_mask(index, entry.columns)
    count = int(mask.sum())
    if tuple(values.shape) != (-(-count // 2),):
        raise _damaged(name, f"has values {list(values.shape)} for a mask of {count}")
    if entry.pattern.m and not bool((mask.view(entry.rows, -1, entry.pattern.m).sum(-1) == entry.pattern.n).all()):
        raise _damaged(name, f"has a mask that is not {entry.kind}")
    out = torch.zeros(entry.rows, entry.columns, dtype=torch.int8)
    out[mask] = unpack_nibbles(values, count)
    return out


def _unpack_bitmask(name: str, entry: MatrixEntry, values: Tensor, index: Tensor) -> Tensor:
    mask = unpack_mask(index, entry.columns)
    if values.dim() != 1 or values.numel() != int(mask.sum()):
        raise _damaged(name, f"has {values.numel()} values for a mask of {int(mask.sum())}")
    out = torch.zeros(entry.rows, entry.columns, dtype=values.dtype)
    out[mask] = values
    return out


def _unpack_groups(name: str, entry: MatrixEntry, values: Tensor, index: Tensor) -> Tensor:
    n, m = entry.pattern.n, entry.pattern.m
    count = entry.columns // m * n
    if tuple(values.shape) != (entry.rows, count):
        raise _damaged(name, f"has values {list(values.shape)}")
    places = unpack_places(index, place_bits(m), count).view(entry.rows, -1, n).short()  # m may be 256: no byte
    if not bool((places < m).all()) or not bool((places[..., 1:] > places[..., :-1]).all()):
        raise _damaged(name, f"has places that are not {n} different ones of {m}, in order")
    out = torch.zeros(entry.rows, entry.columns // m, m, dtype=values.dtype)
    out.scatter_(-1, places.long(), values.view(entry.rows, -1, n))
    return out.view(entry.rows, entry.columns)


def _damaged(name: str, what: str) -> UserError:
    return UserError(f"packed matrix {name} {what}: the file is damaged, pack the checkpoint again.")


def pack_places(places: Tensor, bits: int) -> Tensor:
    """uint8 [rows, n], each below 2^bits, as bytes [rows, ⌈n · bits / 8⌉], lowest bits first.

    By shifts: numpy.packbits would need every place as single bits first, several times the memory.
    """
    per_byte = 8 // bits
    padding = -places.shape[1] % per_byte
    grouped = torch.nn.functional.pad(places, (0, padding)).view(places.shape[0], -1, per_byte)
    shifts = torch.arange(per_byte, dtype=torch.uint8) * bits
    return (grouped << shifts).sum(-1, dtype=torch.uint8)


def unpack_places(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` places of each row of what `pack_places` gave: uint8 [rows, count]."""
    shifts = torch.arange(8 // bits, dtype=torch.uint8) * bits
    return ((packed[..., None] >> shifts) & ((1 << bits) - 1)).flatten(1)[:, :count].contiguous()


def expected_bytes(kind: str, values: str, density: float = 1.0) -> float:
    """Bytes a weight of a matrix with long rows that is packed as `kind`: values, places, and int4's scales.

    `density` is the share of weights that are not zero, which counts in a bitmask.
    """
    m = Pattern() if kind in ("dense", "bitmask") else Pattern.parse(kind)
    stored = m.n / m.m if m.m else density if kind == "bitmask" else 1.0
    value = 0.5 if values == "int4" else VALUE_TYPES[values].itemsize
    if values in blocks.BLOCKS:
        value = blocks.BLOCKS[values].bytes / blocks.BLOCKS[values].inputs
    masked = 0.0 if kind == "dense" else 1 / 8
    places = stored * place_bits(m.m) / 8 if m.m and values != "int4" else masked
    return stored * value + places + (2 / scale_group(kind) if values == "int4" else 0)


def stored_bytes(tensors: dict[str, Tensor]) -> int:
    """Bytes of the tensors on disk."""
    return sum(t.numel() * t.element_size() for t in tensors.values())
