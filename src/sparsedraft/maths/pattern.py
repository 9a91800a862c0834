"""Sparsity patterns by name: which entries of a weight may be zero. `masks` chooses them; no tensor is needed here."""

import re
from dataclasses import dataclass

from sparsedraft.base.errors import UserError


@dataclass(frozen=True)
class Pattern:
    """`unstructured` (n = m = 0), or N:M: at most n non-zeros in each m consecutive inputs of a row."""

    n: int = 0
    m: int = 0

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """The pattern of this name; UserError if it is not `unstructured` or N:M with 0 < N < M."""
        if text == "unstructured":
            return cls()
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if match is None:
            raise UserError(f"pattern '{text}' is not known: give unstructured, or N:M such as 2:4.")
        n, m = int(match[1]), int(match[2])
        if not 0 < n < m:
            raise UserError(f"pattern '{text}' keeps {n} of {m} weights: N must be at least 1 and less than M.")
        return cls(n, m)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else "unstructured"

    def resolve(self, sparsity: float | None) -> float:
        """The share of zeros: what was asked for, or the pattern's own. UserError for an impossible pair."""
        if sparsity is not None and not 0 < sparsity < 1:
            raise UserError(f"sparsity {sparsity} is not possible: give a share between 0 and 1, such as 0.5.")
        if not self.m:
            return 0.5 if sparsity is None else sparsity
        share = 1 - self.n / self.m
        if sparsity is not None and abs(sparsity - share) > 1e-6:
            raise UserError(
                f"pattern {self} has sparsity {share:g}, not {sparsity:g}: leave sparsity out, or change one."
            )
        return share

    def at(self, density: float) -> "Pattern":
        """This pattern with another share of the weights kept (N changes with it; M:M stands for dense)."""
        return Pattern(round(density * self.m), self.m)

    def check_width(self, width: int, name: str) -> None:
        """Raise UserError if `width` inputs cannot be cut into groups of M."""
        if self.m and width % self.m:
            raise UserError(f"linear {name} has {width} inputs, which {self} does not divide: choose another pattern.")
