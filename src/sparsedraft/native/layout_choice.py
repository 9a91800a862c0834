"""Which kind a matrix is packed as, and which layout the kernels read it in: chosen by where its non-zeros lie."""

from dataclasses import dataclass

import numpy as np

from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.zeros import Kept, most_kept, obeys
from sparsedraft.native.extension import fastest

WINDOW_COLUMNS = 65472  # at most: padded to 64, a window's column fits in 16 bits
EXTENSION_NAMES = {"int8": "i8", "int4": "i4"}  # of types of values, where the extension calls them otherwise
DENSE = 0.9  # from this density on the places cost more than the zeros save


@dataclass(frozen=True)
class Layout:
    """How the kernels read a matrix."""

    name: str  # as the extension calls it: dense, 2:4, N:8, bitmask or window
    n: int  # of N:8
    values: str  # the type of values, as the extension calls it
    label: str  # for people, such as "2:4 i8"


def window_up_to() -> float:
    """The density up to which windows beat a bitmask, whose values AVX-512 spreads 64 at a time."""
    return 0.2 if fastest() in ("avx512", "amx") else 0.4


def layout_of(kind: str, density: float, columns: int) -> tuple[str, int]:
    """(the name of the layout of a matrix packed as `kind`, of which `density` is not zero; its N)."""
    if kind == "2:4":
        return "2:4", 2
    if kind.endswith(":8"):
        return "N:8", int(kind.removesuffix(":8"))
    if kind == "dense" or density > DENSE:
        return "dense", 0
    return ("window" if density <= window_up_to() and columns <= WINDOW_COLUMNS else "bitmask"), 0


def takes_bytes(kind: str, values: str) -> bool:
    """Whether a matrix packed as `kind` may be multiplied with inputs of 8 bits where `values` is int8.

    It then lies dense or by a mask. Of N:8, 2:4, 1:8 and 2:8 do not: reading their places is the faster way.
    """
    return values == "int8" and kind not in ("2:4", "1:8", "2:8")


def int4_layout_of(kind: str, density: float) -> tuple[str, int]:
    """The same of int4, which has no windows, and of N:8 only 4:8 and 2:8: a mask takes no more bytes than places.

    Without AVX-512, spreading the codes of a mask out takes longer than reading all of them, the zeros too.
    """
    if kind == "2:4":
        return "2:4", 2
    if kind in ("4:8", "2:8"):
        return "N:8", int(kind[0])
    spreads = fastest() in ("avx512", "amx")
    return ("dense", 0) if kind == "dense" or density > DENSE or not spreads else ("bitmask", 0)


def choose(kind: str, values: str, columns: int, density: float, activations: int = 16) -> Layout:
    """The layout of a matrix packed as `kind`, of which `density` is not zero.

    `values` is the type of its values: f32, f16, bf16, int8 or int4; `activations`, of int8: bits of the inputs that it
    is multiplied with, 16 or 8 (see takes_bytes).
    """
    values = EXTENSION_NAMES.get(values, values)
    if values == "f32":  # sparse layouts hold 16 bits or fewer
        name, n = "dense", 0
    elif values == "i4":
        name, n = int4_layout_of(kind, density)
    elif values == "i8" and activations == 8:
        name, n = ("dense" if kind == "dense" or density > DENSE else "bitmask"), 0
    else:
        name, n = layout_of(kind, density, columns)
    return Layout(name, n, values, f"{kind if name == 'N:8' else name} {values}")


def kind_of_mask(kept: Kept, claimed: str | None = None) -> str:
    """The kind to pack a matrix as whose non-zeros are `kept` [rows, columns].

    It is the sparsest of 2:4 and N:8 that it obeys, else by its density. `claimed` is the pattern that the checkpoint
    claims; one of another M (such as 8:16) is kept.
    """
    density = float(np.float32(np.count_nonzero(kept)) / np.float32(kept.size))
    if kept.shape[1] % 8 == 0:
        n = max(1, most_kept(kept, 8))
        # an empty slot of N:8 costs as much as a value: worth it while few are empty
        if n < 8 and density >= 0.9 * n / 8:
            return "2:4" if n == 4 and obeys(kept, Pattern(2, 4)) else f"{n}:8"
    if claimed not in (None, "unstructured", "dense") and obeys(kept, Pattern.parse(claimed)):
        return claimed
    return "dense" if density > DENSE else "bitmask"
