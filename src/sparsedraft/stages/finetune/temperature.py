"""The temperature at which the trained drafter is accepted most, from the validation rows."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from sparsedraft.base.processes import share_of, sum_over_processes
from sparsedraft.maths.temperature import Fitted, fit
from sparsedraft.stages.finetune.sharding import reshard
from sparsedraft.text.bins import Bin
from sparsedraft.text.logits import accepted


def fitted(
    model: PreTrainedModel, rows: Sequence[Bin], teacher: nn.Module | None, accelerator: Accelerator
) -> Fitted | None:
    """The drafter's best temperature on `rows`, which the processes divide among them; None where no p is known there.

    `teacher` is the target; without it the log-probabilities in the rows count.
    """
    if teacher is None and not any(bool(row.soft.any()) for row in rows):
        return None

    def measure(temperatures: Sequence[float]) -> tuple[list[float], int]:
        model.eval()
        sums, places = torch.zeros(len(temperatures), dtype=torch.float64), 0
        for row, counts in share_of(rows, accelerator):
            of_row, n = accepted(model, row.to(accelerator.device), teacher, temperatures)
            if counts:
                sums, places = sums + of_row, places + n
        reshard(model)
        *totals, count = sum_over_processes(accelerator, *sums.tolist(), places)
        return totals, int(count)

    return fit(measure)
