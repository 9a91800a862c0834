"""Which mask tokens training keeps (see text.parallel); needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dropping:
    """How many mask tokens a draft of `tokens` tokens has, and which share of them is kept: `rate`^depth, `least`."""

    tokens: int
    rate: float = 0.7
    least: float = 0.2

    def share(self, depth: int) -> float:
        """The share of the starts whose mask token at `depth`, from 1, is kept."""
        return max(self.rate**depth, self.least)

    @property
    def growth(self) -> float:
        """Tokens read for each token that may start a draft, itself included, at most."""
        return 1 + sum(self.share(depth) for depth in range(1, self.tokens))
