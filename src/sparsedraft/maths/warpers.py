"""How a model's distribution is changed before a token is drawn from it; `sampling` does so with its logits."""

import sys
from dataclasses import dataclass, replace

from sparsedraft.base.errors import UserError

COLDEST = 1e-30  # temperature, below which float32 would divide by 0


@dataclass(frozen=True)
class Sampling:
    """Repetition penalty (1: off), temperature (0: greedy), top-k (0: off), top-p (1: off), min-p (0: off).

    In transformers' order. The penalty (Keskar et al. 2019) also changes what greedy decoding picks. `verification`:
    sampled chains are accepted as a "block" or "token" by token (speculate.loop.accept), which changes no distribution.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    verification: str = "block"

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature {self.temperature} is not possible: give 0 (greedy) or more.")
        if self.top_k < 0:
            raise UserError(f"top-k {self.top_k} is not possible: give 0 (off) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p {self.top_p} is not possible: give a share above 0 and up to 1 (off).")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min-p {self.min_p} is not possible: give a share from 0 (off) to 1.")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(
                f"repetition penalty {self.repetition_penalty} is not possible: give 1 (off), or more to repeat less."
            )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def tempered(self, factor: float) -> "Sampling":
        """The same at `factor` (above 0) times the temperature. Greedy stays greedy, and sampling sampling."""
        if self.greedy or factor == 1:
            return self
        return replace(self, temperature=min(max(self.temperature * factor, COLDEST), sys.float_info.max))
