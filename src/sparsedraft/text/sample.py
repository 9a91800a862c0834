"""A sample: one conversation as token ids, to be trained on, calibrated with or scored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsedraft.base.hashing import stable_order


@dataclass(frozen=True)
class Sample:
    """One conversation: token ids of the prompt (template included) and of the target's answer.

    `topk_ids` and `topk_logprobs` [answer tokens, k] are the target's likeliest tokens at each place, where known.
    """

    id: str
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]
    topk_ids: np.ndarray | None = None
    topk_logprobs: np.ndarray | None = None
    prompt_id: str = ""  # the prompt that it came from, where that is known

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)

    @property
    def soft(self) -> bool:
        """Whether the target's likeliest tokens are known."""
        return self.topk_ids is not None and self.topk_ids.shape[1] > 0


def held_out(samples: Sequence[Sample], prompts: int) -> set[str]:
    """The ids of so many prompts that are kept for validation: those whose id has the smallest SHA-256."""
    return {*stable_order({sample.prompt_id for sample in samples}, str)[:prompts]}
