"""The parameters of Llama 3's rope scaling, recovered from the factors that a GGUF file holds instead of them.

With wavelengths w = 2 pi / frequency, a pair's factor is 1 below w = L / high, F above w = L / low, and between the
two 1 / ((1 - s) / F + s), s = (L / w - low) / (high - low). The factors depend on L / low, L / high and F only, so all
L, low and high with these ratios are the same rotation. The usual values are tried first.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

TOLERANCE, RELATIVE = 1e-6, 1e-5  # of 1 / factor: what float32 leaves of it where the converter computed it
LOW, HIGH = 1.0, 4.0  # Llama 3.1's and 3.2's
LENGTHS = [1 << n for n in range(13, 24)] + [1 << n for n in range(12, 3, -1)]
FACTORS = (8.0, 32.0, 16.0, 4.0, 2.0, 64.0)


def parameters_of(factors: NDArray[np.float64], base: float, dims: int, context: int) -> dict[str, Any] | None:
    """The `rope_parameters` (rope_type and what belongs to it) whose factors are `factors` [dims / 2], or None.

    `base` is the rotation's, `dims` how many of a head's dimensions turn; `context` is tried as the original length.
    """
    if not np.isfinite(factors).all() or (factors < 1 - TOLERANCE).any():
        return None
    if np.allclose(factors, factors[0], rtol=TOLERANCE, atol=0):
        if abs(factors[0] - 1) <= TOLERANCE:
            return {"rope_type": "default"}
        return {"rope_type": "linear", "factor": short(float(factors[0]))}
    turns = (1 / base ** (torch.arange(0, dims, 2).float() / dims)).double().numpy() / (2 * math.pi)  # 1 / wavelength
    for factor, low, high, length in _candidates(factors, turns, context):
        if not 0 < low < high or length <= 0:
            continue
        apart = np.abs(1 / _factors(turns, factor, low, high, length) - 1 / factors)
        if (apart <= TOLERANCE).all() and (apart * factors <= RELATIVE).all():
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    return None


def _factors(turns: NDArray[np.float64], factor: float, low: float, high: float, length: int) -> NDArray[np.float64]:
    smooth = np.clip((length * turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _candidates(
    factors: NDArray[np.float64], turns: NDArray[np.float64], context: int
) -> Iterator[tuple[float, float, float, int]]:
    """(F, low, high, L) to try, the usual ones first."""
    most = short(float(factors.max()))
    for factor in (most, *FACTORS):
        for length in (context, *LENGTHS):
            yield factor, LOW, HIGH, length
    between = (factors > 1 + TOLERANCE) & (factors < most * (1 - TOLERANCE))
    smooth = (1 / factors[between] - 1 / most) / (1 - 1 / most)  # a straight line in `turns`: from low / L to high / L
    if len(smooth) == 0:  # a step between two pairs: anywhere between them
        first = turns[factors > 1 + TOLERANCE].max()
        yield (
            most,
            LOW,
            HIGH,
            round(math.sqrt(HIGH) / math.sqrt(first * turns[factors <= 1 + TOLERANCE].min(initial=1))),
        )
    elif len(smooth) == 1:
        yield most, LOW, HIGH, round((LOW + (HIGH - LOW) * smooth[0]) / turns[between][0])
    else:
        slope, start = np.polyfit(turns[between], smooth, 1)
        low, high = float(-start / slope), float((1 - start) / slope)
        whole = round(LOW / low) if low > 0 else 0
        yield most, LOW, round(high * whole, 4), whole
        for length in (context, *LENGTHS):
            yield most, round(low * length, 4), round(high * length, 4), length
            yield most, low * length, high * length, length


def short(value: float) -> float:
    """The shortest decimal with the same float32 value, so that 0.1 comes back as 0.1. `value` is that of a float32."""
    return float(np.format_float_positional(np.float32(value), unique=True, trim="0"))
