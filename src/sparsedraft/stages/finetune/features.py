"""SquareHead (Kurtic et al. 2023): pull the hidden states of every layer towards those of the dense drafter."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

from sparsedraft.base.errors import UserError


def square_head(dense: Sequence[Tensor], sparse: Sequence[Tensor]) -> Tensor:
    """Mean over layers of MSE(sparse, dense) / MSE(dense, 0): hidden states [..., hidden], one tensor a layer.

    The paper adds the layers up; with their mean a feature weight means the same for every number of layers. Errors are
    relative to the dense energy, because hidden states grow by orders of magnitude with depth.
    """
    errors = []
    for goal, hidden in zip(dense, sparse, strict=True):
        energy = goal.float().pow(2).mean().clamp(min=torch.finfo(torch.float32).tiny)  # MSE(dense, 0)
        errors.append(F.mse_loss(hidden.float(), goal.float()) / energy)
    return torch.stack(errors).mean()


def check_match(dense: PretrainedConfig, drafter: PretrainedConfig, name: str) -> None:
    """Raise UserError unless the feature teacher `name` has as many layers, as wide, as the drafter."""
    sizes = [
        (c.get_text_config().num_hidden_layers, c.get_text_config().hidden_size)
        for c in (dense, drafter)  # hidden states are compared layer by layer, entry by entry
    ]
    if sizes[0] != sizes[1]:
        (layers, hidden), (own_layers, own_hidden) = sizes
        raise UserError(
            f"--feature-teacher {name} has {layers} layers of hidden size {hidden} and the drafter {own_layers} of "
            f"{own_hidden}: name the dense model that the drafter was pruned from."
        )
