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
from sparsedraft.stages.finetune.chunks import LogitsOf, logits_in_chunks, loss_in_chunks
from sparsedraft.stages.finetune.features import square_head
from sparsedraft.text.bins import Bin


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
        """(mean loss over the row's answer tokens, how many of them are the drafter's argmax: 0 in training mode).

        The row is one of several whose losses are added up, weighed by their answer tokens. `share` is that of all
        these rows together; with it, the divergence of the sum is the mean over the tokens whose distribution is known.
        Only training mode adds the feature term, so that validation losses compare whatever its weight; and it does
        not look for the argmax of a whole vocabulary.
        Features are those of every token of the row, the prompt's included, because later tokens attend to them; but
        for mask tokens, which the dense drafter does not read.
        """
        if share == 1 and (share := self.share([row])) == 0:
            raise self.unknown("this text")
        features = model.training and self.feature_weight > 0
        target, dense = self._teachers(row, features)
        agree = torch.zeros((), dtype=torch.long, device=row.tokens.device)

        def loss_of(logits: Tensor, part: slice) -> Tensor:
            tokens = row.tokens[part]
            if not model.training:
                agree.add_((logits.detach().argmax(-1) == tokens).sum())
            loss = self._on_logits(logits, target(part) if target else None, row, part, share)
            return loss * (len(tokens) / len(row.tokens))

        loss, hidden = loss_in_chunks(model, row, loss_of, hidden_states=features)
        if features:
            of_text = [state[:, : goal.shape[1]] for state, goal in zip(hidden, dense, strict=True)]
            loss = loss + self.feature_weight * square_head(dense, of_text)
        return loss, agree

    @torch.no_grad()
    def _teachers(self, row: Bin, features: bool) -> tuple[LogitsOf | None, tuple[Tensor, ...]]:
        """The target's logits by slices of places and the dense drafter's hidden states, where the loss needs them."""
        target: LogitsOf | None = None
        dense: tuple[Tensor, ...] = ()
        shared = features and self.feature_teacher is self.teacher
        if self.teacher is not None and self.loss != "nll":
            target, dense = logits_in_chunks(self.teacher, row, hidden_states=shared)
        if features and not dense and self.feature_teacher is not None:
            _, dense = logits_in_chunks(self.feature_teacher, row, hidden_states=True)
        return target, dense

    def _on_logits(self, logits: Tensor, p_logits: Tensor | None, row: Bin, part: slice, share: float) -> Tensor:
        """The mean loss over the places `part` of the row, whose logits these are."""
        if self.loss == "nll":
            return losses.nll(logits, row.tokens[part])
        if p_logits is not None:
            loss = losses.DIVERGENCES[self.loss](*losses.whole(p_logits, logits))
        else:
            loss = self._stored(logits, row, part, share)
        if self.nll_weight == 0:
            return loss
        loss = (1 - self.nll_weight) * loss
        return loss if row.own else loss + self.nll_weight * losses.nll(logits, row.tokens[part])

    def _stored(self, logits: Tensor, row: Bin, part: slice, share: float) -> Tensor:
        """The divergence from the stored distributions, as a mean over the tokens that have one (see `__call__`)."""
        soft = row.soft[part]
        known = int(soft.sum())
        if known == 0:
            return logits.sum() * 0.0
        topk_ids, topk_logprobs = row.topk_ids[part], row.topk_logprobs[part]
        if known < len(soft):
            places = soft.nonzero().squeeze(1)
            topk_ids, topk_logprobs, logits = topk_ids[places], topk_logprobs[places], logits[places]
        mean = losses.DIVERGENCES[self.loss](*losses.bucketed(topk_ids, topk_logprobs, logits))
        return mean * (known / len(soft) / share)
