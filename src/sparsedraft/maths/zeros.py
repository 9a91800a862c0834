"""Where the zeros of a matrix lie: the N:M pattern that it obeys. On numpy arrays, so that no torch is needed."""

import numpy as np
from numpy.typing import NDArray

from sparsedraft.maths.pattern import Pattern

Kept = NDArray[np.bool_]  # true where a weight is not zero
GROUPS = (4, 8, 16, 32)  # the M of the patterns that are looked for


def most_kept(kept: Kept, m: int) -> int:
    """The most non-zeros in any m consecutive inputs of `kept` [..., columns]; m divides the columns."""
    return int(np.einsum("gm->g", kept.reshape(-1, m).astype(np.int16)).max())


def obeys(kept: Kept, pattern: Pattern) -> bool:
    """Whether `kept` [rows, columns] has the zeros that the pattern asks for (unstructured asks for none)."""
    return not pattern.m or (kept.shape[1] % pattern.m == 0 and most_kept(kept, pattern.m) <= pattern.n)


def tightest(kept: Kept) -> str:
    """`dense` (no zero), the sparsest N:M that `kept` [..., columns] obeys (the smallest M), or `unstructured`.

    An N:M is named only if the weights fill at least nine tenths of the places that it allows.
    """
    nonzero = int(np.count_nonzero(kept))
    if nonzero == kept.size:
        return "dense"
    density = 1 - (kept.size - nonzero) / kept.size
    candidates: list[tuple[float, int, int]] = []
    for m in GROUPS:
        if kept.shape[-1] % m == 0:
            n = max(most_kept(kept, m), 1)
            if n < m and density >= 0.9 * n / m:
                candidates.append((n / m, m, n))
    if not candidates:
        return "unstructured"
    _, m, n = min(candidates)
    return str(Pattern(n, m))
