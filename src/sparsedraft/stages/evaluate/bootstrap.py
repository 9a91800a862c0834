"""The bootstrap over prompts: intervals of sums and ratios of an evaluation's rows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DRAWS = 2000
LEVEL = 0.95

Row = dict[str, Any]


def interval(rows: Sequence[Row], over: Callable[[Row], float], under: Callable[[Row], float]) -> list[float]:
    """95 % bootstrap interval of Σ over / Σ under; prompts are drawn with replacement, with all their turns."""
    over_sums, under_sums = resampled(rows, over, under)
    return central(over_sums[under_sums > 0] / under_sums[under_sums > 0])


def resampled(rows: Sequence[Row], *of: Callable[[Row], float]) -> np.ndarray:
    """The sum of each of `of` over prompts drawn with replacement, [len(of), DRAWS]; all share the same draws."""
    names = sorted({row["prompt"] for row in rows})
    place = {name: i for i, name in enumerate(names)}
    sums = np.zeros((len(of), len(names)))
    for row in rows:
        sums[:, place[row["prompt"]]] += [value(row) for value in of]
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    return np.stack([drawn @ each for each in sums])


def central(values: np.ndarray) -> list[float]:
    """The ends of the middle 95 % of the draws."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def ratio_interval(ratio: float, values: np.ndarray, prompts: int) -> list[float]:
    """The 95 % interval of a ratio from its bootstrap draws `values` over few prompts; [] for a single prompt.

    A bootstrap over n prompts is too narrow: by √((n-1)/n), and because it uses the normal distribution, not Student's
    t. Both factors are applied to the logarithm of the ratio.
    """
    from scipy.stats import norm, t  # a second to import

    if prompts < 2:
        return []
    student, normal = t.ppf((1 + LEVEL) / 2, prompts - 1), norm.ppf((1 + LEVEL) / 2)
    factor = student / normal * np.sqrt(prompts / (prompts - 1))
    return [float(ratio * (end / ratio) ** factor) for end in central(values)]


def prompt_count(rows: Sequence[Row]) -> int:
    """How many prompts the rows are of."""
    return len({row["prompt"] for row in rows})


def total(rows: Sequence[Row], key: str) -> float:
    """The sum of one field."""
    return float(sum(row[key] for row in rows))
