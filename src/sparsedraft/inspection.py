"""What a checkpoint is made of, tensor by tensor: shapes, zeros, patterns, MACs; never in memory whole."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from transformers import PretrainedConfig

from sparsedraft import checkpoint, quantized
from sparsedraft.console import track
from sparsedraft.decoder import count_zeros, decoder_linears
from sparsedraft.errors import UserError
from sparsedraft.measure.macs import dense_weights, skeleton
from sparsedraft.measure.matrices import active_experts, matrices, of_experts
from sparsedraft.pattern import Pattern
from sparsedraft.runtime import layouts as native_layouts
from sparsedraft.runtime.weights import PackedWeights, is_packed
from sparsedraft.shards import Shards
from sparsedraft.sidefiles import read_object
from sparsedraft.sources import locate

GROUPS = (4, 8, 16, 32)  # the M of the patterns that are looked for


@dataclass(frozen=True)
class Row:
    """One matrix of weights inside the decoder layers."""

    name: str
    shape: tuple[int, ...]
    zeros: int
    pattern: str  # "dense", "unstructured" or the tightest N:M that holds
    error: float | None  # layer-wise relative error, where the checkpoint says it
    runs: str | None = None  # how the native engine multiplies it, such as "2:4 bf16"; None where it does not

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


def holds(weight: Tensor) -> str:
    """`dense` (no zero), the sparsest N:M that `weight` [..., in] obeys (the smallest M), or `unstructured`.

    An N:M that leaves more than a tenth of its places empty says little about the mask, and is not named.
    """
    zero = (weight.float() if weight.element_size() == 1 else weight) == 0
    if not bool(zero.any()):
        return "dense"
    density = 1 - float(zero.double().mean())
    found: list[tuple[float, int, int]] = []
    for m in GROUPS:
        if weight.shape[-1] % m == 0:
            n = max(int((~zero).reshape(-1, m).sum(-1).max()), 1)
            if n < m and density >= 0.9 * n / m:
                found.append((n / m, m, n))
    if not found:
        return "unstructured"
    _, m, n = min(found)
    return str(Pattern(n, m))


def linear_names(folder: Path, shards: Shards) -> tuple[dict[str, str], bool]:
    """The decoder's matrices in order (name in the model: name in the shards), and whether all are plain linears.

    Where they are not, every matrix with a layer's number in its name is meant.
    """
    try:
        config = checkpoint.read_config(folder)
        if checkpoint.is_decoder_lm(config):
            model = skeleton(config)
            linears = decoder_linears(model)
            wanted = {name: shards.find(f"{name}.weight", model.base_model_prefix) for name in linears}
            found = {
                name: stored for name, stored in wanted.items() if stored and not quantized.is_part(stored, shards)
            }
            if found.keys() == linears.keys():
                return found, True
    except Exception:
        pass  # an encoder, an expert model, quantised weights: show what is stored
    inside = [
        name
        for name, shape in shards.shapes.items()
        if re.search(r"\.\d+\.", f".{name}") and len(shape) >= 2 and not quantized.is_part(name, shards)
    ]
    inside.sort(key=lambda name: [(int(part) if part.isdigit() else -1, part) for part in name.split(".")])
    return {name: name for name in inside}, False


def rows(folder: Path, shards: Shards | None = None, native: bool = False) -> Iterator[Row]:
    """One row per matrix of the decoder's layers, read one at a time; `native`: say how it runs, too."""
    shards = shards or Shards(folder)
    errors = _errors(folder)
    claimed = (checkpoint.claimed_sparsity(folder) or {}).get("linears", {})
    native = native and native_layouts.runs_here(folder)
    for name, stored in linear_names(folder, shards)[0].items():
        weight = shards.tensor(stored)
        error = next((e for key, e in errors.items() if f".{name}".endswith(f".{key}")), None)
        runs = native_layouts.plain(weight, name in claimed) if native else None
        yield Row(name, shards.shapes[stored], count_zeros(weight), holds(weight), error, runs)


def _errors(folder: Path) -> dict[str, float]:
    try:
        found = read_object(folder / "result.json")["relative_errors"]
        return {str(name): float(error) for name, error in found.items()}
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def nonzero_parameters(shards: Shards) -> tuple[int, int]:
    """(non-zero parameters, all parameters) of what is stored; a tied head counts once, though it be stored twice."""
    tied = getattr(checkpoint.read_config(shards.folder), "tie_word_embeddings", False)
    sizes = {
        name: torch.Size(shape).numel()
        for name, shape in shards.shapes.items()
        if not (tied and name == "lm_head.weight" and any(n.endswith("embed_tokens.weight") for n in shards.files))
    }
    return sum(size - count_zeros(shards.tensor(name)) for name, size in sizes.items()), sum(sizes.values())


def macs(folder: Path, found: list[Row] | None = None) -> int:
    """MACs per token of a checkpoint, by its actual zeros, head included (DESIGN §1).

    UserError where its layers hold what is no matrix, or are stored otherwise than their config says.
    """
    known = known_macs(folder, list(rows(folder, Shards(folder))) if found is None else found)
    if known is None:
        raise UserError(f"model {folder} is not made of plain linears, so its MACs per token are not known.")
    return known


def known_macs(folder: Path, found: list[Row]) -> int | None:
    """The same from all rows of a checkpoint; None where it cannot be known. Of experts the active ones count."""
    config = checkpoint.read_config(folder)
    if not checkpoint.is_decoder_lm(config):
        return None
    if quantized.format_of(config, Shards(folder)):
        return None
    model = skeleton(config)
    wanted, active = matrices(model), active_experts(config)
    parts = [row for row in found if not row.name.endswith("bias")]
    # experts are mostly stored one by one, and fused when they are loaded: their weights must add up to the same
    if wanted is None or _sizes({row.name: row.size for row in parts}) != _sizes(
        {name: matrix.weight.numel() for name, matrix in wanted.items()}
    ):
        return None
    used = {of: sum(row.size - row.zeros for row in parts if of_experts(row.name) == of) for of in (True, False)}
    share = Fraction(*active) if active else Fraction(1)
    return dense_weights(model) + used[False] + round(used[True] * share)


def _sizes(by_name: dict[str, int]) -> tuple[int, int]:
    """(weights of experts, other weights)."""
    experts = sum(size for name, size in by_name.items() if of_experts(name))
    return experts, sum(by_name.values()) - experts


def inspect(ref: str) -> dict[str, Any]:
    """Everything about the checkpoint `ref`: its linears (see Row), MACs, parameters, bytes, and what it claims.

    `macs_per_token` counts the active experts; it is None for a model whose layers hold what is no matrix.
    Raises UserError where there is no checkpoint, or a damaged one.
    """
    folder = locate(ref)
    config = checkpoint.read_config(folder)
    if is_packed(folder):
        return _inspect_packed(folder, config)
    shards = Shards(folder)
    names, _ = linear_names(folder, shards)
    with track("inspecting", len(names), "matrices") as tracker:
        found = []
        for row in rows(folder, shards, native=True):
            found.append(row)
            tracker.advance()
    size, zeros = sum(row.size for row in found), sum(row.zeros for row in found)
    nonzero, parameters = nonzero_parameters(shards)
    claim = checkpoint.claimed_sparsity(folder)
    return {
        **_named(folder, config),
        "quantized": quantized.format_of(config, shards),
        "macs_per_token": known_macs(folder, found),
        "macs_dense": known_macs(folder, [replace(row, zeros=0) for row in found]),
        "parameters": parameters,
        "nonzero_parameters": nonzero,
        "bytes": sum(shards.bytes(name) for name in shards.files),
        "dtypes": sorted(set(shards.types.values())),
        "sparsity": zeros / size if size else 0.0,
        "sparsity_whole_model": 1 - nonzero / parameters,
        "claims": claim["pattern"] if claim else None,
        "claim_holds": _claim_holds(claim, folder, names, shards) if claim else None,
        "linears": [{**asdict(row), "sparsity": row.zeros / row.size} for row in found],
    }


def _named(folder: Path, config: PretrainedConfig) -> dict[str, Any]:
    return {
        "checkpoint": str(folder),
        "architecture": (getattr(config, "architectures", None) or ["?"])[0],
        "layers": getattr(config.get_text_config(), "num_hidden_layers", None),
    }


def _inspect_packed(folder: Path, config: PretrainedConfig) -> dict[str, Any]:
    """`inspect` of a packed folder."""
    weights, found, outside, nonzero, parameters = PackedWeights(folder), [], 0, 0, 0
    with track("inspecting", len(weights.names), "tensors") as tracker:
        for name in sorted(weights.names):
            linear = name.removesuffix(".weight")
            values = weights.matrix(name)[0] if linear in weights.entries else weights.vector(name)
            zeros = count_zeros(values)
            nonzero, parameters = nonzero + values.numel() - zeros, parameters + values.numel()
            tracker.advance()
            if linear not in weights.entries:
                continue
            if re.search(r"\.\d+\.", f".{linear}"):
                runs = native_layouts.packed(values, weights.entries[linear].kind)
                found.append(Row(linear, tuple(values.shape), zeros, holds(values), None, runs))
            elif linear == "lm_head" or config.get_text_config().tie_word_embeddings:
                ids = weights.head_ids()
                outside = values.shape[1] * (values.shape[0] if ids is None else len(ids))
    found.sort(key=lambda row: [(int(part) if part.isdigit() else -1, part) for part in row.name.split(".")])
    size, zeros = sum(row.size for row in found), sum(row.zeros for row in found)
    return {
        **_named(folder, config),
        "quantized": None,
        "macs_per_token": outside + size - zeros,
        "macs_dense": outside + size,
        "parameters": parameters,
        "nonzero_parameters": nonzero,
        "bytes": weights.bytes,
        "dtypes": sorted({entry.values for entry in weights.entries.values()}),
        "sparsity": zeros / size if size else 0.0,
        "sparsity_whole_model": 1 - nonzero / parameters,
        "claims": None,
        "claim_holds": None,
        "linears": [{**asdict(row), "sparsity": row.zeros / row.size} for row in found],
    }


def _claim_holds(claim: dict[str, Any], folder: Path, names: dict[str, str], shards: Shards) -> bool:
    try:
        for name in claim["linears"]:
            checkpoint.check_claim(claim, name, shards.tensor(names[name]), folder)
    except (UserError, KeyError):
        return False
    return True


def table(result: dict[str, Any]) -> Table:
    """The linears as a table for people."""
    kind = f" (quantised: {result['quantized']})" if result["quantized"] else ""
    shown = Table(title=f"{result['checkpoint']}{kind}")
    for name in ("linear", "shape", "sparsity", "pattern", "relative error", "runs natively as"):
        shown.add_column(name, justify="left" if name in ("linear", "pattern", "runs natively as") else "right")
    for row in result["linears"]:
        error = "" if row["error"] is None else f"{row['error']:.4f}"
        shape = " x ".join(str(n) for n in row["shape"])
        shown.add_row(row["name"], shape, f"{row['sparsity']:.2%}", row["pattern"], error, row["runs"] or "")
    return shown
