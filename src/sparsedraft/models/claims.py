"""What a checkpoint claims of its zeros in sparsity.json, and the proof against its weights."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, StrictInt, StrictStr
from transformers import PreTrainedModel

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_as
from sparsedraft.maths.masks import obeys
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models.decoder import count_zeros, decoder_linears


class Claim(BaseModel):
    """What sparsity.json holds."""

    pattern: StrictStr
    sparsity: float = 0.0
    linears: dict[str, Annotated[StrictInt, Field(ge=0)]]  # zeros
    patterns: dict[str, StrictStr] = {}


def claim_of(folder: Path) -> dict[str, Any] | None:
    """The claim in sparsity.json: {"pattern", "sparsity", "linears": {name: zeros}}; None where there is no such file.

    "patterns": {name: pattern} holds the linears whose pattern differs from the rest ("dense": nothing was pruned).
    UserError for a file of another form.
    """
    file = folder / "sparsity.json"
    if not file.is_file():
        return None
    claim = read_as(file, Claim, "prune the model again, or delete the file")
    try:
        for text in (claim.pattern, *claim.patterns.values()):
            if text != "dense":
                Pattern.parse(text)
    except UserError as error:
        raise UserError(f"{file} cannot be read ({error}): prune the model again, or delete the file.") from None
    return claim.model_dump(exclude_unset=True)


def pattern_of(claim: dict[str, Any], name: str) -> Pattern:
    """The pattern that `claim` names for one linear."""
    text = claim.get("patterns", {}).get(name, claim["pattern"])
    return Pattern() if text == "dense" else Pattern.parse(text)


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
