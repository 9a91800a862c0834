"""How much memory a packed model takes while it is loaded: its matrices as this CPU reads them, and one on its way.

The sizes of the layouts are those of csrc/layout: records.hpp and records_int4.hpp.
"""

from sparsedraft.native.blocks import row_bytes
from sparsedraft.native.packed_folder import PackedReader
from sparsedraft.native.packed_format import MatrixEntry

COLUMNS = 64  # columns are padded to a multiple of this, rows to those of a tile
TILE_ROWS, TILE_ROWS_OF_BYTES = 8, 16
PLACES = 32  # bytes of the places of a record of 2:4 (32 inputs) and of N:8 (64 / N inputs)
INT4_RECORD = {"dense": 512, "2:4": 384, "4:8": 448, "2:8": 256}  # bytes of a record of 64 inputs, without scales
WINDOW = {1: 112 / 64, 2: 88 / 32}  # bytes of a slot of a window, by those of a value
# bytes a weight of GGUF's types: codes and scales (and minimums); of blocks of 256 inputs a byte a group and a float16
BLOCK_BYTES = {
    "q8_0": 1 + 2 / 32, "q4_1": 0.5 + 4 / 32, "q5_0": 0.625 + 2 / 32, "q5_1": 0.625 + 4 / 32,
    "q4_k": 0.5 + 2 / 32 + 4 / 256, "q5_k": 0.625 + 2 / 32 + 4 / 256, "q6_k": 0.75 + 1 / 16 + 2 / 256,
}  # fmt: skip
PAGE = 2 << 20
EMPTY = 0.12  # slots of windows that stay empty, a share of all weights: measured at 10 to 25 % of weights that stay
# bytes a weight of int4 while it is laid out: the file's; of sparse ones also a byte for its code, its mask and a copy
MAPPED_INT4, UNPACKED_INT4 = 0.5, 3.5


def loading_bytes(reader: PackedReader) -> int:
    """Bytes that loading the folder of `reader` takes at its peak.

    The embedding is looked at and stays in its file; only its scales are kept. Then comes the head, then the layers.
    They stay as they are laid out; on its way a matrix is there as it was read, too, and where its tiles are not all of
    one size (bitmasks, windows), twice laid out.
    """
    kept = float(reader.bytes - sum(reader.stored_bytes(name) for name in reader.entries))  # vectors
    peak = 0.0
    for name, entry in sorted(reader.entries.items(), key=lambda item: not _is_head(item[0], reader)):
        laid = laid_out_bytes(entry, reader.stored_values(name))
        if name.endswith("embed_tokens"):
            peak = max(peak, _read_bytes(entry))
            kept += _scale_bytes(entry)
            laid *= 0 if "lm_head" in reader.entries else (reader.head_rows or entry.rows) / entry.rows
        laid = _in_pages(laid)
        in_order = 2 if reader.follows and _is_head(name, reader) else 1  # as stored, and by frequency
        peak = max(
            peak, kept + in_order * _read_bytes(entry) + laid * _times_laid_out(entry, reader.stored_values(name))
        )
        kept += laid
    return round(max(peak, kept))


def _is_head(name: str, reader: PackedReader) -> bool:
    return name == "lm_head" or (name.endswith("embed_tokens") and "lm_head" not in reader.entries)


def _scale_bytes(entry: MatrixEntry) -> int:
    """Bytes of the scales of an embedding."""
    return entry.rows * (2 * -(-entry.columns // entry.group) if entry.group else 4 if entry.values == "int8" else 0)


def _in_pages(size: float) -> float:
    """Bytes that `size` of them take in memory: large ones lie in whole pages of 2 MB."""
    return size if size < PAGE else -(-size // PAGE) * PAGE


def _times_laid_out(entry: MatrixEntry, values: int) -> int:
    """How often a matrix of which `values` are stored is in memory while it is laid out."""
    layout = entry.layout(values / (entry.rows * entry.columns))
    return 2 if layout.name in ("bitmask", "window") else 1


def laid_out_bytes(entry: MatrixEntry, values: int) -> float:
    """Bytes of a matrix as the kernels read it, of which `values` are stored."""
    if entry.blocks:
        rows = -(-entry.rows // TILE_ROWS_OF_BYTES) * TILE_ROWS_OF_BYTES
        return rows * BLOCK_BYTES[entry.values] * -(-entry.columns // COLUMNS) * COLUMNS
    int4 = entry.values == "int4"
    tile_rows = TILE_ROWS_OF_BYTES if int4 or entry.activations == 8 else TILE_ROWS
    rows, width = -(-entry.rows // tile_rows) * tile_rows, -(-entry.columns // COLUMNS) * COLUMNS
    layout = entry.layout(values / (entry.rows * entry.columns))
    if int4:
        records, scales = rows // TILE_ROWS_OF_BYTES * (width // COLUMNS), rows * 2 * -(-width // entry.group)
        if layout.name == "bitmask":
            low = -(-(width // 2) // COLUMNS) * COLUMNS  # columns whose codes lie in the low halves of bytes
            codes = values * max(low, entry.columns - low) / entry.columns
            return records * COLUMNS * TILE_ROWS_OF_BYTES / 8 + codes + scales
        return records * INT4_RECORD[entry.kind if layout.name == "N:8" else layout.name] + scales
    size = {"int8": 1, "f32": 4}.get(entry.values, 2)
    row_scales = rows * 4 if entry.values == "int8" else 0
    if layout.name == "dense":
        return rows * width * size + row_scales
    if layout.name == "bitmask":
        return rows * width / 8 + values * size + row_scales
    if layout.name == "window":
        return (values + EMPTY * rows * width) * WINDOW[size] + row_scales
    inputs, slots = (32, 16) if layout.name == "2:4" else (COLUMNS / layout.n, 8)
    return rows / TILE_ROWS * width / inputs * (PLACES + slots * TILE_ROWS * size) + row_scales


def _read_bytes(entry: MatrixEntry) -> float:
    """Bytes that the values of a matrix take on the way from their file to the layout."""
    if entry.blocks:
        return entry.rows * row_bytes(entry.values, entry.columns)
    int4 = MAPPED_INT4 if entry.kind == "dense" else UNPACKED_INT4
    each = int4 if entry.values == "int4" else 1 if entry.values == "int8" else 2
    return each * entry.rows * entry.columns
