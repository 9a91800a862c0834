"""Sparsity patterns: which entries of a weight may be zero, and choosing them from scores."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

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
        own = 1 - self.n / self.m
        if sparsity is not None and abs(sparsity - own) > 1e-6:
            raise UserError(
                f"pattern {self} has sparsity {own:g}, not {sparsity:g}: leave sparsity out, or change one."
            )
        return own

    def at(self, density: float) -> "Pattern":
        """This pattern with another share of the weights kept (N changes with it; M:M stands for dense)."""
        return Pattern(round(density * self.m), self.m)

    def check_width(self, width: int, name: str) -> None:
        """Raise UserError if `width` inputs cannot be cut into groups of M."""
        if self.m and width % self.m:
            raise UserError(f"linear {name} has {width} inputs, which {self} does not divide: choose another pattern.")

    def keep(self, scores: Tensor, sparsity: float) -> Tensor:
        """Keep-mask (bool [rows, columns]) that prunes the entries with the lowest `scores`.

        Unstructured: exactly round(sparsity · entries) over the whole matrix; N:M: the M - N lowest of each group.
        Ties go to the earlier entry, so that the result depends on nothing but the scores.
        """
        if self.m:
            if self.n == self.m:
                return torch.ones_like(scores, dtype=torch.bool)
            rows, columns = scores.shape
            order = scores.reshape(rows, columns // self.m, self.m).argsort(dim=-1, stable=True)
            kept = torch.ones_like(order, dtype=torch.bool)
            return kept.scatter_(-1, order[..., : self.m - self.n], False).reshape(rows, columns)
        count = round(sparsity * scores.numel())
        if not count:
            return torch.ones_like(scores, dtype=torch.bool)
        flat = scores.flatten()
        least = flat.kthvalue(count).values  # a selection, several times faster than a sort
        kept = flat > least
        ties = (flat == least).nonzero().squeeze(1)
        kept[ties[count - int((flat < least).sum()) :]] = True
        return kept.reshape(scores.shape)

    def holds(self, weight: Tensor) -> bool:
        """Whether `weight` [rows, columns] obeys the pattern (unstructured always does)."""
        if not self.m:
            return True
        if weight.shape[1] % self.m:
            return False
        groups = (weight != 0).reshape(weight.shape[0], -1, self.m)
        return bool((groups.sum(-1) <= self.n).all())
