"""Speed-up arithmetic: what a mean accepted length is worth at a given cost of drafting and verifying."""

from scipy.optimize import brentq


def improvement_factor(mal: float, k: float, c: float, v: float = 1.0) -> float:
    """Tokens per unit of target time against plain decoding: MAL / (v + K·c).

    `c` is the cost of a drafter step and `v` that of verifying K+1 tokens, both in target steps. With v = 1 and c from
    MACs it is the theoretical factor of the SD² paper (after Leviathan et al. 2023, Theorem 3.8).
    """
    return mal / (v + k * c)


def expected_length(a: float, k: int) -> float:
    """Expected tokens per step, (1 - a^(K+1)) / (1 - a), if each draft is accepted with probability `a` in 0..1."""
    return float(k + 1) if a == 1 else (1 - a ** (k + 1)) / (1 - a)


def break_even(k: int, c: float, v: float = 1.0) -> float | None:
    """The per-token acceptance at which speculation with K = `k` costs as much as it gives; None if it never pays.

    It is the root `a` in 0..1 of `expected_length(a, k)` = v + K·c, whose left side rises from 1 to K+1.
    """
    cost = v + k * c
    if cost > k + 1:
        return None
    if cost <= 1:  # it pays even where no draft is accepted
        return 0.0
    return float(brentq(lambda a: expected_length(a, k) - cost, 0, 1, xtol=1e-15))
