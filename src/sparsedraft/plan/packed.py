"""Packing what a recipe makes: the work, the bytes, and the memory that running it takes."""

from typing import Any

from sparsedraft.native.architecture import unsupported
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
        how, model, _trimmed(how, entry)
    )


def _trimmed(how: Speed, entry: Drafter | None) -> int | None:
    """Rows of the drafter's trimmed head; None where all are stored."""
    return how.head_tokens if entry and not how.head_follows else None


def _embedding_bytes(how: Speed, model: Model, head_tokens: int | None) -> float:
    """Bytes of a packed model's embedding and head, of which a tied one is stored apart where its codes differ."""
    head, embedding = _types(how)
    apart = not model.config.tie_word_embeddings or head != embedding
    apart |= head == "int4" and how.calibration_tokens is not None
    size = model.config.vocab_size * model.config.hidden_size
    return size * expected_bytes("dense", embedding) + apart * _head_bytes(how, model, head_tokens) + _vectors(model)


def _types(how: Speed) -> tuple[str, str]:
    """(that of the head's weights, that of the embedding's)."""
    head = how.head_weights or ("int8" if how.weights == "int4" else how.weights)
    return head, how.embedding_weights or head


def _head_bytes(how: Speed, model: Model, head_tokens: int | None) -> float:
    rows = min(head_tokens or model.config.vocab_size, model.config.vocab_size)
    return rows * model.config.hidden_size * expected_bytes("dense", _types(how)[0])


def _vectors(model: Model) -> float:
    """Bytes of norms and biases."""
    tables = model.config.vocab_size * model.config.hidden_size * (1 if model.config.tie_word_embeddings else 2)
    return max(0, model.parameters - model.linears - tables) * 2.0


def running(recipe: Recipe, how: Speed, target: Model, dense: Model, tokens: int) -> list[dict[str, Any]]:
    """The memory of the target and of each drafter behind a text of so many tokens: {"model", "weights_bytes",
    "cache_bytes": bytes by the cache's type}; cache_bytes None where transformers runs the model, in float32.

    The native engine leaves a packed embedding in its file. A target that is not packed stays as its config.json says.
    """
    found = [_running("target", target, _weights_bytes(recipe, how, target, None), 1.0, tokens)]
    for entry in recipe.drafters:
        if entry.report:
            weights, kept = _weights_bytes(recipe, how, dense, entry), kept_layers(recipe, entry, dense)
            found.append(_running(entry.name, dense, weights, kept, tokens))
    return found


def _weights_bytes(recipe: Recipe, how: Speed, model: Model, entry: Drafter | None) -> float:
    """Bytes in memory of the weights of `model`, as the drafter `entry` has it (None: the target)."""
    if unsupported(model.config):
        return 4.0 * model.parameters
    if entry is None and not how.pack_target:
        return model.parameters * BYTES.get(str(model.config.dtype).removeprefix("torch."), 4.0)
    head_tokens = _trimmed(how, entry)
    linears = packed_bytes(recipe, how, model, entry) - _embedding_bytes(how, model, head_tokens)
    return linears + _head_bytes(how, model, head_tokens) + _vectors(model)


def _running(name: str, model: Model, weights: float, kept: float, tokens: int) -> dict[str, Any]:
    """`kept`: the share of the layers that is left."""
    layers = round(kept * model.config.num_hidden_layers)
    each = None if unsupported(model.config) else bytes_per_token(layers, model.kv_heads, model.head_dim)
    cache = each and {kind: size * tokens for kind, size in each.items()}
    return {"model": name, "weights_bytes": int(weights), "cache_bytes": cache}
