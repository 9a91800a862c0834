"""What the matrices of a checkpoint hold, counted one at a time from its shards: shapes, zeros, patterns, MACs."""

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.zeros import tightest
from sparsedraft.models import checkpoint, claims, quantizers, rounded
from sparsedraft.models.config.sparsity import groups_of
from sparsedraft.models.decoder import count_zeros, decoder_linears
from sparsedraft.models.macs import dense_weights
from sparsedraft.models.matrices import active_experts, matrices, of_experts
from sparsedraft.models.records import MatrixRecord, error_of, layer_order, relative_errors
from sparsedraft.models.shards import Shards
from sparsedraft.models.skeleton import skeleton


def holds(weight: Tensor) -> str:
    """The pattern that `weight` [..., in] obeys: dense, unstructured or N:M (see maths.zeros.tightest)."""
    return tightest(((weight.float() if weight.element_size() == 1 else weight) != 0).numpy())


def linear_names(folder: Path, shards: Shards) -> tuple[dict[str, str], bool]:
    """({name in the model: name in the shards} of the decoder's matrices in order, whether all are plain linears).

    Where some are not plain linears, the matrices are those with a layer's number in their names.
    """
    try:
        config = checkpoint.read_config(folder)
        if checkpoint.is_decoder_lm(config):
            model = skeleton(config)
            linears = decoder_linears(model)
            stored_names = {name: shards.find(f"{name}.weight", model.base_model_prefix) for name in linears}
            plain = {
                name: stored
                for name, stored in stored_names.items()
                if stored and not quantizers.is_part(stored, shards)
            }
            if plain.keys() == linears.keys():
                return plain, True
    except Exception:
        pass  # an encoder, a model with experts, quantised weights: the census shows what is stored
    inside = [
        name
        for name, shape in shards.shapes.items()
        if re.search(r"\.\d+\.", f".{name}") and len(shape) >= 2 and not quantizers.is_part(name, shards)
    ]
    inside.sort(key=layer_order)
    return {name: name for name in inside}, False


def records(
    folder: Path, shards: Shards | None = None, runs: Callable[[Tensor, bool], str | None] | None = None
) -> Iterator[MatrixRecord]:
    """One record per matrix of the decoder's layers; one matrix is in memory at a time.

    `runs` says how a matrix runs natively, from its weight and whether the checkpoint claims a pattern for it.
    """
    shards = shards or Shards(folder)
    errors, groups, beside = relative_errors(folder), groups_of(folder), rounded.bytes_beside(folder)
    claimed = (claims.claim_of(folder) or {}).get("linears", {})
    for name, stored in linear_names(folder, shards)[0].items():
        weight = shards.tensor(stored)
        yield MatrixRecord(
            name=name,
            shape=shards.shapes[stored],
            zeros=count_zeros(weight),
            pattern=holds(weight),
            error=error_of(name, errors),
            values="int4" if name in groups else shards.types[stored].lower(),
            group=groups.get(name, 0),
            bytes=shards.bytes(stored) + beside.get(name, 0),
            runs=runs(weight, name in claimed) if runs else None,
        )


def nonzero_parameters(shards: Shards) -> tuple[int, int]:
    """(non-zero parameters, all parameters) of the shards; a tied head counts once, even if it is stored twice."""
    tied = getattr(checkpoint.read_config(shards.folder), "tie_word_embeddings", False)
    sizes = {
        name: torch.Size(shape).numel()
        for name, shape in shards.shapes.items()
        if not (tied and name == "lm_head.weight" and any(n.endswith("embed_tokens.weight") for n in shards.files))
    }
    return sum(size - count_zeros(shards.tensor(name)) for name, size in sizes.items()), sum(sizes.values())


def macs(folder: Path, counts: list[MatrixRecord] | None = None) -> int:
    """MACs per token of a checkpoint, by its actual zeros, head included (docs/method.md, Terms).

    UserError where a layer holds something other than matrices, or where the shards do not match the config.
    """
    total = known_macs(folder, list(records(folder, Shards(folder))) if counts is None else counts)
    if total is None:
        raise UserError(f"model {folder} is not made of plain linears, so its MACs per token are not known.")
    return total


def known_macs(folder: Path, counts: list[MatrixRecord]) -> int | None:
    """MACs per token from all records of a checkpoint; None where they cannot be known. Active experts count."""
    config = checkpoint.read_config(folder)
    if not checkpoint.is_decoder_lm(config):
        return None
    if quantizers.format_of(config, Shards(folder)):
        return None
    model = skeleton(config)
    by_name, active = matrices(model), active_experts(config)
    parts = [row for row in counts if not row.name.endswith("bias")]
    # most files store experts one by one, and loading fuses them: only the sums of their sizes can be compared
    if by_name is None or _sizes({row.name: row.size for row in parts}) != _sizes(
        {name: matrix.weight.numel() for name, matrix in by_name.items()}
    ):
        return None
    nonzero = {of: sum(row.size - row.zeros for row in parts if of_experts(row.name) == of) for of in (True, False)}
    share = Fraction(*active) if active else Fraction(1)
    return dense_weights(model) + nonzero[False] + round(nonzero[True] * share)


def _sizes(by_name: dict[str, int]) -> tuple[int, int]:
    """(weights of experts, other weights)."""
    experts = sum(size for name, size in by_name.items() if of_experts(name))
    return experts, sum(by_name.values()) - experts
