"""What fine-tuning minimises on one packed row."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsedraft.errors import UserError
from sparsedraft.finetune import losses
from sparsedraft.packing import PackedRow, answer_logits


@dataclass(frozen=True)
class Objective:
    """The loss by name, and the target as `teacher` where the loss compares distributions and the row has none."""

    loss: str = "nll"
    teacher: PreTrainedModel | None = None

    def __call__(self, model: nn.Module, row: PackedRow) -> tuple[Tensor, Tensor]:
        """(mean loss over the row's answer tokens, how many of them are the drafter's argmax)."""
        logits = answer_logits(model, row)
        agree = (logits.detach().argmax(-1) == row.tokens).sum()
        if self.loss == "nll":
            return losses.nll(logits, row.tokens), agree
        if self.teacher is None and self.loss == "kl" and row.topk_ids.shape[1]:
            return losses.topk_kl(row.topk_ids, row.topk_logprobs, logits), agree
        if self.teacher is None:
            raise UserError(
                f"--loss {self.loss} compares distributions: give the target as --teacher"
                + (", distill with --top-k-logprobs," if self.loss == "kl" else "")
                + " or use --loss nll."
            )
        with torch.no_grad():
            p_logits = answer_logits(self.teacher, row)
        return losses.DISTILLATION[self.loss](p_logits, logits), agree
