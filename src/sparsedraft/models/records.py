"""What is counted of one matrix of a checkpoint, and the figures that pruning left of it in result.json."""

import math
from dataclasses import dataclass
from pathlib import Path

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object


@dataclass(frozen=True)
class MatrixRecord:
    """One matrix of weights inside the decoder layers."""

    name: str
    shape: tuple[int, ...]
    zeros: int
    pattern: str  # "dense", "unstructured" or the tightest N:M that the weights obey
    error: float | None  # ‖(W-Ŵ)X‖² / ‖WX‖², where the checkpoint's result.json has it
    values: str  # the type of its values, such as "bf16"; "int4" also where a checkpoint holds code · scale in floats
    group: int  # inputs that share a scale of int4; 0: no such scales
    bytes: int  # on disk: values, places and scales
    runs: str | None = None  # how the native engine multiplies it, such as "2:4 bf16"; None where it does not

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def layer_order(name: str) -> list[tuple[int, str]]:
    """Sorts the names of matrices by the numbers of their layers: layer 2 comes before layer 10."""
    return [(int(part) if part.isdigit() else -1, part) for part in name.split(".")]


def relative_errors(folder: Path) -> dict[str, float]:
    """The error of each pruned matrix, by the end of its name, as result.json has it; empty where it has none."""
    try:
        errors = read_object(folder / "result.json")["relative_errors"]
        return {str(name): float(error) for name, error in errors.items()}
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def error_of(name: str, errors: dict[str, float]) -> float | None:
    """The relative error of the matrix `name`; None where `errors` has none."""
    return next((error for key, error in errors.items() if f".{name}".endswith(f".{key}")), None)
