"""Packing what a recipe makes: the work, the bytes, and the memory that running it takes."""

from typing import Any

from sparsedraft.native.cache_size import bytes_per_token
from sparsedraft.native.packed_format import expected_bytes
from sparsedraft.plan.lines import line
from sparsedraft.plan.model import BYTES, Model
from sparsedraft.plan.shares import density, kept_layers, kind_of
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.recipe.sections import Drafter, Speed
from sparsedraft.stages.prune import memory


def pack_stage(recipe: Recipe, how: Speed, target: Model, dense: Model) -> dict[str, Any]:
    """Every drafter that is evaluated, and the target if it is packed, too: bytes by the weights' type, the pattern's
    places and int4's scales. Rounding on calibration text walks through the layers as pruning does; else a matrix is in
    memory at a time."""
    packed, width = [(dense, entry) for entry in recipe.drafters if entry.report], BYTES[recipe.dtype]
    disk = sum(packed_bytes(recipe, how, *which) for which in packed)
    models = [dense for _ in packed]
    if how.pack_target:
        disk += packed_bytes(recipe, how, target, None)
        models.append(target)
    tokens = how.calibration_tokens or 0
    if not tokens:
        largest = max(model.config.vocab_size * model.config.hidden_size for model in models)
        return line("pack", "prune", 0, 4 * 4 * largest, 0, disk)
    flops = sum(2 * 2 * m.linears * tokens + m.hessian_flops * tokens + m.solve_flops for m in models)
    needed = max(memory.peak(model.module, width) for model in models)
    return line("pack", "prune", tokens * len(models), needed, flops, disk)


def packed_bytes(recipe: Recipe, how: Speed, model: Model, entry: Drafter | None) -> float:
    """Bytes of a packed folder of `model`, as the drafter `entry` has it (None: as it is)."""
    stays, kept = (density(recipe, entry) or 1.0, kept_layers(recipe, entry, model)) if entry else (1.0, 1.0)
    kind = "dense" if entry is None else kind_of(recipe, entry)
    return kept * model.linears * expected_bytes(kind, how.weights, stays) + _embedding_bytes(
        how, model, how.head_tokens if entry else None
    )


def _embedding_bytes(how: Speed, model: Model, head_tokens: int | None) -> float:
    """Bytes of a packed model's embedding and head, of which a tied one is stored apart where its codes differ."""
    head = how.head_weights or ("int8" if how.weights == "int4" else how.weights)
    embedding = how.embedding_weights or head
    size, tied = model.config.vocab_size * model.config.hidden_size, model.config.tie_word_embeddings
    apart = not tied or head != embedding or (head == "int4" and how.calibration_tokens is not None)
    others = model.parameters - model.linears - size * (1 if tied else 2)  # norms and biases
    rows = min(head_tokens or model.config.vocab_size, model.config.vocab_size) if apart else 0
    heads = rows * model.config.hidden_size * expected_bytes("dense", head)
    return size * expected_bytes("dense", embedding) + heads + max(0, others) * 2.0


def running(recipe: Recipe, how: Speed, target: Model, dense: Model, tokens: int) -> list[dict[str, Any]]:
    """The memory of the target and of each drafter in the native engine behind a text of so many tokens:
    {"model", "weights_bytes", "cache_bytes": bytes by the cache's type}. A target that is not packed has 16 bits."""
    weights = packed_bytes(recipe, how, target, None) if how.pack_target else 2.0 * target.parameters
    found = [_running("target", target, weights, target.config.num_hidden_layers, tokens)]
    for entry in recipe.drafters:
        if entry.report:
            layers = round(kept_layers(recipe, entry, dense) * dense.config.num_hidden_layers)
            found.append(_running(entry.name, dense, packed_bytes(recipe, how, dense, entry), layers, tokens))
    return found


def _running(name: str, model: Model, weights: float, layers: int, tokens: int) -> dict[str, Any]:
    each = bytes_per_token(layers, model.kv_heads, model.head_dim)
    return {
        "model": name, "weights_bytes": int(weights),
        "cache_bytes": {cache: size * tokens for cache, size in each.items()},
    }  # fmt: skip
