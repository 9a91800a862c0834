"""Weight tying: whether a model's head is its embedding. A stored head with other numbers overrides config.json."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from sparsedraft.base.errors import UserError
from sparsedraft.models.shards import Shards
from sparsedraft.models.weight_files import weight_files


def holds_other_head(config: PretrainedConfig, folder: Path) -> bool:
    """Whether the checkpoint in `folder` holds a tensor that `config` ties to another one, with other numbers.

    transformers then ties nothing, whatever config.json says. False where there are no weights.
    """
    if not getattr(config, "tie_word_embeddings", False) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    tied = getattr(kind, "_tied_weights_keys", None)
    if not isinstance(tied, dict):
        return False
    try:
        stamps = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in weight_files(folder))
        return _differ(folder, kind.base_model_prefix, tuple(tied.items()), stamps)
    except (UserError, OSError):  # the reader of the weights will report what is wrong with them
        return False


@lru_cache(maxsize=64)
def _differ(folder: Path, prefix: str, pairs: tuple[tuple[str, str], ...], stamps: object) -> bool:
    """Whether one of `pairs` differs. Cached by the files' `stamps`: the matrices are large."""
    shards = Shards(folder)
    names = [(shards.find(one, prefix), shards.find(other, prefix)) for one, other in pairs]
    return any(one and other and not shards.same(one, other) for one, other in names)
