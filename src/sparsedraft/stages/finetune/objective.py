"""What fine-tuning minimises on one packed row.

On a row that the target wrote: (1 - w) · divergence(p, q) + w · NLL + f · SquareHead, with w the `nll_weight` and f
the `feature_weight`. A row that the drafter wrote itself (`own`) has no NLL part: its tokens say nothing about the
target, and making them likelier would only sharpen whatever the drafter does now. The divergence keeps 1 - w.

Without the target in memory, the divergence is a mean over the answer tokens whose distribution is stored, the NLL over
all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsedraft.base.errors import UserError
from sparsedraft.stages.finetune import losses
from sparsedraft.stages.finetune.features import square_head
from sparsedraft.text.bins import Bin
from sparsedraft.text.logits import outputs, outputs_of_text


@dataclass(frozen=True)
class Objective:
    """The loss by name, and the target as `teacher` where the loss compares distributions and the row has none.

    `feature_teacher` is the dense drafter; where it is `teacher` itself, one pass serves both.
    """

    loss: str = "nll"
    teacher: nn.Module | None = None
    nll_weight: float = 0.0
    feature_teacher: nn.Module | None = None
    feature_weight: float = 0.0

    def share(self, rows: Sequence[Bin]) -> float:
        """The share of the answer tokens of `rows` whose distribution is known; 1 where nothing stored is needed."""
        if self.loss == "nll" or self.teacher is not None:
            return 1.0
        return sum(int(row.soft.sum()) for row in rows) / sum(len(row.soft) for row in rows)

    def unknown(self, what: str) -> UserError:
        """The error for text of which no distribution is known."""
        return UserError(
            f"--loss {self.loss} compares distributions, and no row of {what} has log-probabilities: give the target "
            "as --teacher, distill with --top-k-logprobs, or use --loss nll."
        )

    def __call__(self, model: nn.Module, row: Bin, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """(mean loss over the row's answer tokens, how many of them are the drafter's argmax).

        The row is one of several whose losses are added up, weighed by their answer tokens. `share` is that of all
        these rows together; with it, the divergence of the sum is the mean over the tokens whose distribution is known.
        Only training mode adds the feature term, so that validation losses compare whatever its weight.
        Features are those of every token of the row, the prompt's included, because later tokens attend to them; but
        for mask tokens, which the dense drafter does not read.
        """
        features = model.training and self.feature_weight > 0
        logits, hidden = outputs(model, row, hidden_states=features)
        agree = (logits.detach().argmax(-1) == row.tokens).sum()
        p_logits, dense = self._teachers(row, features)
        loss = self._on_logits(logits, p_logits, row, share)
        if features:
            of_text = [state[:, : goal.shape[1]] for state, goal in zip(hidden, dense, strict=True)]
            loss = loss + self.feature_weight * square_head(dense, of_text)
        return loss, agree

    @torch.no_grad()
    def _teachers(self, row: Bin, features: bool) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """The target's logits and the dense drafter's hidden states, each where the loss needs it."""
        p_logits: Tensor | None = None
        dense: tuple[Tensor, ...] = ()
        shared = features and self.feature_teacher is self.teacher
        if self.teacher is not None and self.loss != "nll":
            p_logits, dense = outputs_of_text(self.teacher, row, hidden_states=shared)
        if features and not dense and self.feature_teacher is not None:
            _, dense = outputs_of_text(self.feature_teacher, row, hidden_states=True)
        return p_logits, dense

    def _on_logits(self, logits: Tensor, p_logits: Tensor | None, row: Bin, share: float) -> Tensor:
        if self.loss == "nll":
            return losses.nll(logits, row.tokens)
        if p_logits is not None:
            loss = losses.DIVERGENCES[self.loss](*losses.whole(p_logits, logits))
        else:
            loss = self._stored(logits, row, share)
        if self.nll_weight == 0:
            return loss
        loss = (1 - self.nll_weight) * loss
        return loss if row.own else loss + self.nll_weight * losses.nll(logits, row.tokens)

    def _stored(self, logits: Tensor, row: Bin, share: float) -> Tensor:
        """The divergence from the stored distributions, as a mean over the tokens that have one (see `__call__`)."""
        known = int(row.soft.sum())
        if known == 0 and share == 1:
            raise self.unknown("this text")
        if known == 0:
            return logits.sum() * 0.0
        if known < len(row.soft):
            places = row.soft.nonzero().squeeze(1)
            pair = losses.bucketed(row.topk_ids[places], row.topk_logprobs[places], logits[places])
        else:
            pair = losses.bucketed(row.topk_ids, row.topk_logprobs, logits)
        mean = losses.DIVERGENCES[self.loss](*pair)
        return mean if share == 1 else mean * (known / len(row.soft) / share)
