"""Speed-up arithmetic: what a mean accepted length is worth at a given cost of drafting and verifying."""


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

    The root in 0..1 of `expected_length(a, k)` = v + K·c, which rises with a, so bisection finds it.
    """
    cost = v + k * c
    if cost > k + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_length(middle, k) < cost else (low, middle)
    return high
