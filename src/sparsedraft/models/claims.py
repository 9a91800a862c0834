"""What a checkpoint claims of its zeros in sparsity.json, and the proof against its weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsedraft.base.errors import UserError
from sparsedraft.maths.masks import obeys
from sparsedraft.models.config.sparsity import claim_of, pattern_of
from sparsedraft.models.decoder import count_zeros, decoder_linears

__all__ = ["check_claim", "check_claims", "claim_of", "pattern_of"]


def check_claims(model: PreTrainedModel, folder: Path) -> dict[str, Any] | None:
    """The checkpoint's claim of zeros, proved against the weights of `model`; None where it claims nothing.

    Raises UserError if a linear has fewer zeros than claimed or breaks its N:M pattern.
    """
    claim = claim_of(folder)
    if claim is None:
        return None
    linears = decoder_linears(model)
    for name in claim["linears"]:
        if name not in linears:
            raise UserError(f"checkpoint {folder} claims a mask for {name}, which the model does not have.")
        check_claim(claim, name, linears[name].weight.detach(), folder)
    return claim


def check_claim(claim: dict[str, Any], name: str, weight: torch.Tensor, folder: Path) -> None:
    """Raise UserError if `weight` has fewer zeros than `claim` says, or breaks its N:M pattern."""
    pattern, zeros = pattern_of(claim, name), claim["linears"][name]
    if count_zeros(weight) < zeros or not obeys(weight, pattern):
        raise UserError(
            f"checkpoint {folder} lies: {name} is not {pattern} with {zeros} zeros as sparsity.json says; "
            "prune it again."
        )
