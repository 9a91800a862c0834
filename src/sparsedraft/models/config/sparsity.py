"""sparsity.json: what a checkpoint claims of its zeros. The proof against its weights is in `models.claims`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictInt, StrictStr

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_as
from sparsedraft.maths.pattern import Pattern


class Quantization(BaseModel):
    """How the weights are rounded that the checkpoint holds; their scales lie in quantization.safetensors."""

    scheme: Literal["int4"]
    groups: dict[str, Annotated[StrictInt, Field(ge=1)]]  # inputs that share a scale, by linear


class Claim(BaseModel):
    """What sparsity.json holds."""

    pattern: StrictStr
    sparsity: float = 0.0
    linears: dict[str, Annotated[StrictInt, Field(ge=0)]]  # zeros
    patterns: dict[str, StrictStr] = {}
    quantization: Quantization | None = None


def claim_of(folder: Path) -> dict[str, Any] | None:
    """The claim in sparsity.json: {"pattern", "sparsity", "linears": {name: zeros}}; None where there is no such file.

    "patterns": {name: pattern} holds the linears whose pattern differs from the rest ("dense": nothing was pruned).
    UserError for a file of another form.
    """
    claim = _read(folder)
    return None if claim is None else claim.model_dump(exclude_unset=True, exclude={"quantization"})


def groups_of(folder: Path) -> dict[str, int]:
    """The linears that hold rounded weights: inputs that share an int4 scale, by name. UserError as `claim_of`."""
    claim = _read(folder)
    return claim.quantization.groups if claim and claim.quantization else {}


def _read(folder: Path) -> Claim | None:
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
    return claim


def pattern_of(claim: dict[str, Any], name: str) -> Pattern:
    """The pattern that `claim` names for one linear."""
    text = claim.get("patterns", {}).get(name, claim["pattern"])
    return Pattern() if text == "dense" else Pattern.parse(text)
