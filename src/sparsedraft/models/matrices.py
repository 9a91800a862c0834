"""The matrices that one token is multiplied with inside the decoder layers.

A mixture of experts keeps the weights of all experts in one tensor, or in a list of modules. A token meets k of E
experts, so k/E of their weights count. Where a layer holds something else (convolutions, state spaces, weights packed
by a quantiser), it is not known how often a weight is used, and the answer is None.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from sparsedraft.base.errors import UserError
from sparsedraft.models.decoder import count_zeros, named_layers

ACTIVE = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k", "moe_k",
    "top_k_experts",
)  # fmt: skip
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
IDLE = ("zero_expert_num",)  # experts without weights: how many of the k are such depends on the text


@dataclass(frozen=True)
class Matrix:
    """`weight` (any shape), of which one token meets `share`."""

    weight: Tensor
    share: Fraction = Fraction(1)

    def macs(self, sparsity: float | None = None) -> Fraction:
        """Multiply-accumulates for a token: the weights that are not zero (or all but `sparsity` of them)."""
        size = self.weight.numel()
        zeros = round(size * sparsity) if sparsity is not None else count_zeros(self.weight)
        return (size - zeros) * self.share


def active_experts(config: PretrainedConfig) -> tuple[int, int] | None:
    """(k, E): a token meets k of E experts; None where the config does not give one such pair for all layers."""
    text = config.get_text_config()

    def number(names: tuple[str, ...]) -> int | None:
        value = next((v for name in names if (v := getattr(text, name, None)) is not None), None)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        return value if type(value) is int and value > 0 else None

    k, count = number(ACTIVE), number(EXPERTS)
    if k is None or count is None or k > count or any(getattr(text, name, None) for name in IDLE):
        return None
    return k, count


def of_experts(name: str) -> bool:
    """Whether a tensor of this name belongs to experts among which a router chooses."""
    return any("experts" in part and "shared" not in part for part in name.split("."))


def matrices(model: nn.Module) -> dict[str, Matrix] | None:
    """Every matrix inside the decoder layers by its name in the state dict; None where that cannot be known."""
    config: PretrainedConfig = model.config  # type: ignore[assignment]
    if getattr(model, "is_quantized", False):
        return None
    try:
        prefix, layers = named_layers(model)
    except UserError:
        return None
    active = active_experts(config)
    by_name: dict[str, Matrix] = {}
    for path, module in layers.named_modules():
        for key, weight in module.named_parameters(recurse=False):
            name = f"{prefix}.{path}.{key}"
            if weight.dim() < 2 or key.endswith("bias") or isinstance(module, nn.Embedding):
                continue
            if not weight.is_floating_point() or weight.element_size() == 1:
                return None  # a quantiser's
            share = _share(module, name, weight, active)
            if share is None:
                return None
            by_name[name] = Matrix(weight, share)
    return by_name


def _share(module: nn.Module, name: str, weight: Tensor, active: tuple[int, int] | None) -> Fraction | None:
    """The share of `weight` that a token meets; None where that is not known."""
    if of_experts(name):
        # all experts in one tensor, or stacked as rows (DBRX), or one module each
        fused = weight.dim() == 3 and active is not None and weight.shape[0] == active[1]
        known = fused or re.search(r"experts\.(mlp|\d+)\.", name)
        return Fraction(*active) if active is not None and known else None
    if isinstance(module, nn.Linear | Conv1D):
        return Fraction(1)
    router = weight.dim() == 2 and re.search(r"router|gat(e|ing)$", type(module).__name__, re.IGNORECASE)
    return Fraction(1) if router else None
