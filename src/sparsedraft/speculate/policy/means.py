"""Running means of noisy measurements, and lines through them."""

from collections import deque

# A value counts e^-1 after 20 others: long enough to even out the luck of single steps, short enough to follow a text
# that changes.
FADE = 0.95


class Mean:
    """A weighted mean whose past fades: Σ w_i v_i f^(n-i) / Σ w_i f^(n-i)."""

    def __init__(self, fade: float = FADE) -> None:
        self.sum = self.weight = 0.0
        self.fade = fade

    def add(self, value: float, weight: float = 1.0) -> None:
        self.sum, self.weight = self.sum * self.fade + value * weight, self.weight * self.fade + weight

    def forget(self, share: float) -> None:
        """Reduce the weight of all that was added by this share."""
        self.sum, self.weight = self.sum * (1 - share), self.weight * (1 - share)

    @property
    def value(self) -> float | None:
        return self.sum / self.weight if self.weight else None


class Recent:
    """The mean of the last `most` values without the highest: there may be few, and one of them may be a stall.

    A median would not do: where steps are uneven it lies below their mean, and plain steps would count as losses.
    """

    def __init__(self, most: int = 7) -> None:
        self.last: deque[float] = deque(maxlen=most)

    def add(self, value: float) -> None:
        self.last.append(value)

    def renew(self) -> None:
        """Only the lowest value counts on, until others come."""
        if self.last:
            lowest = min(self.last)
            self.last.clear()
            self.last.append(lowest)

    @property
    def value(self) -> float | None:
        if len(self.last) < 2:
            return self.last[0] if self.last else None
        return (sum(self.last) - max(self.last)) / (len(self.last) - 1)


def interpolate(measured: dict[int, float], k: float) -> float:
    """The value at k on the lines through the measured points; beyond the last point it never falls."""
    known = sorted(measured.items())
    at = next((i for i, (n, _) in enumerate(known) if n >= k), len(known) - 1)
    (n0, t0), (n1, t1) = known[max(0, at - 1)], known[at]
    slope = (t1 - t0) / (n1 - n0) if n0 < n1 else 0.0
    return t1 + (k - n1) * (slope if k < n1 else max(0.0, slope))
