"""A model's logits over a bin, at the positions that predict an answer token; behind mask tokens, too."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsedraft.maths import temperature
from sparsedraft.text.bins import Bin
from sparsedraft.text.parallel import ParallelBin


def answer_logits(model: nn.Module, row: Bin) -> Tensor:
    """Logits [n, V] at the n positions of `row` that predict an answer token; the head runs on no other."""
    return outputs(model, row)[0]


def outputs(model: nn.Module, row: Bin, hidden_states: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(`answer_logits`, the hidden states [1, L, hidden] after each layer, if asked for: the last one normalised)."""
    out = model(
        input_ids=row.ids,
        position_ids=row.positions,
        logits_to_keep=row.predict,
        use_cache=False,
        **({"attention_mask": row.visible} if isinstance(row, ParallelBin) else {}),
        **({"output_hidden_states": True} if hidden_states else {}),
    )
    return out.logits[0], out.hidden_states[1:] if hidden_states else ()


def outputs_of_text(model: nn.Module, row: Bin, hidden_states: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`outputs` of a model that reads no mask tokens: the logits behind the text that each of them stands for.

    The hidden states are those of the text.
    """
    if not isinstance(row, ParallelBin):
        return outputs(model, row, hidden_states)
    logits, hidden = outputs(model, row.plain(), hidden_states)
    return logits[row.source], hidden


@torch.inference_mode()
def logprobs(model: nn.Module, row: Bin) -> Tensor:
    """Log-probabilities [n, V], float32, at the n positions of `row` that predict an answer token."""
    return answer_logits(model, row).float().log_softmax(-1)


@torch.no_grad()
def accepted(
    model: nn.Module, row: Bin, teacher: nn.Module | None, temperatures: Sequence[float]
) -> tuple[Tensor, int]:
    """(the drafter's summed acceptance at each of m `temperatures` [m], over how many places of `row`).

    p is that of `teacher`, the target; without it that of the log-probabilities in `row`, at the places that have them.
    """
    logits = answer_logits(model, row)
    if teacher is not None:
        p = outputs_of_text(teacher, row)[0].float().softmax(-1)
        return temperature.accepted(p, logits, temperatures), len(p)
    at = row.soft.nonzero().squeeze(1)
    p, ids = row.topk_logprobs[at].exp(), row.topk_ids[at]
    return temperature.accepted(p, logits[at], temperatures, ids), len(at)
