"""The contents of a plain checkpoint (see models.config.plain), counted with neither torch nor transformers.

The result is that of `counted` for the same checkpoint, in less time: importing the two takes seconds.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.maths.zeros import Kept, obeys, tightest
from sparsedraft.models.config.plain import PlainConfig, plain_config
from sparsedraft.models.config.sparsity import claim_of, groups_of, pattern_of
from sparsedraft.models.records import MatrixRecord, error_of, relative_errors
from sparsedraft.models.weight_files import BYTES, StoredTensor, stored_tensors
from sparsedraft.native.cache_size import bytes_per_token
from sparsedraft.native.layout_choice import choose, kind_of_mask
from sparsedraft.stages.inspect.contents import Contents

NAMES = re.compile(r"(model\.(embed_tokens|norm|layers\.\d+\.[\w.]+)|lm_head)\.(weight|bias)")
VALUES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}  # what the native engine calls the types that it multiplies


def inspect_plain(folder: Path) -> dict[str, Any] | None:
    """The result of `inspect` for the checkpoint in `folder`; None where it is not plain, or something is wrong."""
    if (folder / "packed.json").is_file():
        return None
    try:
        config, tensors = plain_config(folder), stored_tensors(folder)
        if config is None or tensors is None or not _fit(config, tensors) or groups_of(folder):
            return None
        return _contents(folder, config, tensors).to_dict(folder, config.architectures[0], config.num_hidden_layers)
    except (UserError, SafetensorError, OSError, ValueError):  # `counted` says what is wrong
        return None


def _fit(config: PlainConfig, tensors: dict[str, StoredTensor]) -> bool:
    """Whether the tensors are those of the model that `config` describes, and no tied head is stored."""
    matrices = {f"{name}.weight": shape for name, shape in config.linears().items()}
    matrices["model.embed_tokens.weight"] = (config.vocab_size, config.hidden_size)
    if "lm_head.weight" in tensors:
        if config.tie_word_embeddings is not False:
            return False
        matrices["lm_head.weight"] = matrices["model.embed_tokens.weight"]
    return all(NAMES.fullmatch(name) for name in tensors) and all(
        name in tensors and tensors[name].shape == shape for name, shape in matrices.items()
    )


def _contents(folder: Path, config: PlainConfig, tensors: dict[str, StoredTensor]) -> Contents:
    """What is counted in the tensors, one in memory at a time."""
    claim, errors, linears = claim_of(folder), relative_errors(folder), config.linears()
    claimed = claim["linears"] if claim else {}
    true_claims, matrices = set(), []
    with track("inspecting", len(linears), "matrices") as tracker:
        for name in linears:
            tensor = tensors[f"{name}.weight"]
            kept = tensor.kept()
            zeros = kept.size - int(np.count_nonzero(kept))
            runs = _runs(kept, tensor.type, name in claimed)
            values, stored = tensor.type.lower(), BYTES[tensor.type] * tensor.size
            error = error_of(name, errors)
            matrices.append(MatrixRecord(name, tensor.shape, zeros, tightest(kept), error, values, 0, stored, runs))
            if claim and name in claimed and zeros >= claimed[name] and obeys(kept, pattern_of(claim, name)):
                true_claims.add(name)
            tracker.advance()
    size, nonzero = sum(m.size for m in matrices), sum(m.size - m.zeros for m in matrices)
    others = [tensor for name, tensor in tensors.items() if name.removesuffix(".weight") not in linears]
    head = config.vocab_size * config.hidden_size
    return Contents(
        matrices=matrices,
        macs=head + nonzero,
        macs_dense=head + size,
        nonzero=nonzero + sum(int(np.count_nonzero(tensor.kept())) for tensor in others),
        parameters=sum(tensor.size for tensor in tensors.values()),
        bytes=sum(BYTES[tensor.type] * tensor.size for tensor in tensors.values()),
        dtypes=sorted({tensor.type for tensor in tensors.values()}),
        cache=bytes_per_token(config.num_hidden_layers, config.num_key_value_heads, config.head_size),
        claim=claim["pattern"] if claim else None,
        claim_holds=true_claims == claimed.keys() if claim else None,
    )


def _runs(kept: Kept, stored_type: str, pruned: bool) -> str | None:
    """How the native engine multiplies a matrix, dense unless the checkpoint claims that it is `pruned`; None: not."""
    if stored_type not in VALUES:
        return None
    kind = kind_of_mask(kept) if pruned else "dense"
    return choose(kind, VALUES[stored_type], kept.shape[1], int(np.count_nonzero(kept)) / kept.size).label
