"""Passes over rows that several processes share: the gradient of a step, and the figures of a validation."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from sparsedraft.base.processes import share_of, sum_over_processes
from sparsedraft.stages.finetune.objective import Objective
from sparsedraft.stages.finetune.packed import text_by_text
from sparsedraft.stages.finetune.sharding import reshard
from sparsedraft.text.bins import Bin


@torch.no_grad()
def validate(
    model: PreTrainedModel, objective: Objective, rows: Sequence[Bin], accelerator: Accelerator | None = None
) -> dict[str, float]:
    """Mean loss and α over the answer tokens of `rows`, which the processes of `accelerator` divide among them.

    α here is the share of the target's tokens that are the drafter's argmax, given the target's own prefix: the
    greedy acceptance where the target wrote greedily.
    """
    accelerator = accelerator or alone(model)
    model.eval()
    loss, agree, count = 0.0, 0.0, 0.0
    if (share := objective.share(rows)) == 0:
        raise objective.unknown("the validation data")
    for row, counts in share_of(rows, accelerator):
        with text_by_text():
            mean, matches = objective(model, row.to(accelerator.device), share)
        if counts:
            loss += float(mean) * len(row.tokens)
            agree += int(matches)
            count += len(row.tokens)
    reshard(model)
    loss, agree, count = sum_over_processes(accelerator, loss, agree, count)
    return {"val_loss": loss / count, "val_alpha": agree / count}


def add_gradients(model: nn.Module, objective: Objective, rows: Sequence[Bin], accelerator: Accelerator) -> float:
    """Add the gradients of one step over `rows`, pruned weights included; the mean loss, the same in every process.

    Every answer token of the step weighs the same; in a divergence, every one whose distribution is known.
    """
    model.train()
    answer_tokens = sum(len(row.tokens) for row in rows)
    known = objective.share(rows)  # 0: the NLL alone
    share = list(share_of(rows, accelerator))
    total = 0.0
    for index, (row, counts) in enumerate(share):
        # gradients are exchanged with the last row; FSDP would keep whole ones until then, so it exchanges each time
        waits = index < len(share) - 1 and not accelerator.is_fsdp2
        with accelerator.no_sync(model) if waits else nullcontext(), text_by_text():
            loss, _ = objective(model, row.to(accelerator.device), known)
            part = loss * (counts * len(row.tokens) / answer_tokens)
            (part * accelerator.num_processes).backward()  # accelerate's wrappers take the mean over processes
        total += float(part.detach())
    return sum_over_processes(accelerator, total)[0]


def alone(model: PreTrainedModel) -> Accelerator:
    """The accelerator of a process that trains by itself, on the device of `model`."""
    return Accelerator(cpu=model.device.type == "cpu")
