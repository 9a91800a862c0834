"""The contents of any checkpoint, by the model that transformers makes of its config."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint, claims, quantizers, rounded
from sparsedraft.models.census import holds, known_macs, linear_names, nonzero_parameters, records
from sparsedraft.models.macs import dense_weights
from sparsedraft.models.records import MatrixRecord, layer_order
from sparsedraft.models.shards import Shards
from sparsedraft.models.skeleton import skeleton
from sparsedraft.native import architecture, layout_description
from sparsedraft.native.packed_folder import PackedReader, is_packed
from sparsedraft.native.packed_format import stored_bytes
from sparsedraft.native.stored_matrix import StoredMatrix
from sparsedraft.stages.inspect.contents import Contents


def inspect_any(folder: Path) -> dict[str, Any]:
    """The result of `inspect` for the checkpoint in `folder`; UserError where there is none, or a damaged one."""
    config = checkpoint.read_config(folder)
    contents = _packed(folder, config) if is_packed(folder) else _plain(folder, config)
    return contents.to_dict(
        folder,
        (getattr(config, "architectures", None) or ["?"])[0],
        getattr(config.get_text_config(), "num_hidden_layers", None),
    )


def _plain(folder: Path, config: PretrainedConfig) -> Contents:
    """The contents of a Hugging Face checkpoint, one matrix in memory at a time."""
    shards = Shards(folder)
    names, _ = linear_names(folder, shards)
    layout_of = layout_description.of_plain if layout_description.runs_natively(folder) else None
    with track("inspecting", len(names), "matrices") as tracker:
        matrices = []
        for record in records(folder, shards, layout_of):
            matrices.append(record)
            tracker.advance()
    nonzero, parameters = nonzero_parameters(shards)
    claim = claims.claim_of(folder)
    return Contents(
        matrices=matrices,
        macs=known_macs(folder, matrices),
        macs_dense=known_macs(folder, [replace(record, zeros=0) for record in matrices]),
        nonzero=nonzero,
        parameters=parameters,
        bytes=sum(shards.bytes(name) for name in shards.files),
        dtypes=sorted(set(shards.types.values())),
        quantized=quantizers.format_of(config, shards),
        cache=_cache(config),
        claim=claim["pattern"] if claim else None,
        claim_holds=_claim_holds(claim, folder, names, shards) if claim else None,
    )


def _packed(folder: Path, config: PretrainedConfig) -> Contents:
    """The contents of a packed folder, one tensor in memory at a time."""
    weights = PackedReader(folder)
    matrices: list[MatrixRecord] = []
    nonzero = parameters = 0
    head_weights = embedding_weights = None
    with track("inspecting", len(weights.names), "tensors") as tracker:
        for name in sorted(weights.names):
            linear = name.removesuffix(".weight")
            entry = weights.entries.get(linear)
            stored = StoredMatrix(weights.vector(name)) if entry is None else weights.matrix(name)[0]
            kept = stored.nonzero
            zeros, nonzero, parameters = stored.size - kept, nonzero + kept, parameters + stored.size
            tracker.advance()
            if entry is None:
                continue
            if re.search(r"\.\d+\.", f".{linear}"):  # inside a decoder layer
                runs = layout_description.of_packed(stored, entry.kind)
                size = stored_bytes(weights.tensors(linear))
                pattern = "dense" if entry.blocks else holds(stored.values)
                matrices.append(
                    MatrixRecord(linear, stored.shape, zeros, pattern, None, entry.values, entry.group, size, runs)
                )
                continue
            if linear.endswith("embed_tokens"):
                embedding_weights = entry.values
            if linear == "lm_head" or config.get_text_config().tie_word_embeddings:
                head_weights = entry.values
    matrices.sort(key=lambda record: layer_order(record.name))
    size, head = sum(record.size for record in matrices), _head_macs(config, weights.drafted_rows)
    return Contents(
        matrices=matrices,
        macs=head + size - sum(record.zeros for record in matrices),
        macs_dense=head + size,
        nonzero=nonzero,
        parameters=parameters,
        bytes=weights.bytes,
        dtypes=sorted({entry.values for entry in weights.entries.values()}),
        head=head_weights,
        cache=_cache(config),
        embedding=embedding_weights,
        activations=min((e.activations for e in weights.entries.values() if e.values == "int8"), default=None),
    )


def _cache(config: PretrainedConfig) -> dict[str, int] | None:
    """Bytes of keys and values a token; None where the native engine does not run the model."""
    return architecture.cache_bytes(config) if checkpoint.is_decoder_lm(config) else None


def _head_macs(config: PretrainedConfig, rows: int | None) -> int:
    """MACs per token outside the decoder's layers, of a head trimmed to so many rows (None: of a whole one)."""
    model = skeleton(config)
    head: Any = model.get_output_embeddings()
    return dense_weights(model) - (0 if rows is None else head.out_features - rows) * head.in_features


def _claim_holds(claim: dict[str, Any], folder: Path, names: dict[str, str], shards: Shards) -> bool:
    try:
        for name in claim["linears"]:
            weight = shards.tensor(names[name])
            claims.check_claim(claim, name, weight, folder)
            rounded.codes_of(folder, name, weight)
    except (UserError, KeyError):
        return False
    return True
