"""The tokens that two vocabularies share, and their ids in each."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VocabularyMap:
    """Shared tokens: `target[i]` and `drafter[i]` are the ids of the same token. `width` is the target's V."""

    target: Tensor
    drafter: Tensor
    width: int

    def logits(self, q_logits: Tensor) -> Tensor:
        """Drafter logits [n, V_q] over the target's ids [n, V_p]: -inf for tokens that the drafter does not share."""
        mapped = q_logits.new_full((*q_logits.shape[:-1], self.width), -torch.inf)
        mapped[..., self.target] = q_logits[..., self.drafter]
        return mapped

    def inverse(self) -> dict[int, int]:
        """The drafter's id of each shared token, by the target's."""
        return dict(zip(self.target.tolist(), self.drafter.tolist(), strict=True))
