"""Wrappers: vision models (Gemma 3, Mistral Small 3.1, LLaVA, ...) with a text model inside.

Read without the wrapper, the text model is an ordinary causal model, and it is written as an ordinary checkpoint.
"""

import copy
from collections.abc import Iterable

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sparsedraft.base.errors import UserError
from sparsedraft.models.config.token_ids import token_ids

CAUSAL = ("ForCausalLM", "LMHeadModel")  # how the classes of decoder-only language models end
INSIDE = "language_model."  # the name of the text model in every wrapper


def text_model(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the causal model inside a wrapper's `config`; `config` itself if it is not a wrapper's.

    UserError for a quantised wrapper: its quantisation config refers to the wrapper's names of tensors.
    """
    text, names = config.get_text_config(), getattr(config, "architectures", None) or []
    if text is config or any(str(name).endswith(CAUSAL) for name in names):
        return config
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type)
    if not isinstance(causal, str) or not causal.endswith(CAUSAL):
        return config
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"the text model inside {', '.join(map(str, names)) or config.model_type} is quantised with its wrapper: "
            "give the original checkpoint."
        )
    inner = copy.deepcopy(text)
    inner.architectures = [causal]
    inner.tie_word_embeddings = bool(getattr(config, "tie_word_embeddings", False))  # the wrapper's value decides
    inner.dtype = text.dtype or config.dtype
    if outer := token_ids(getattr(config, "eos_token_id", None)):
        inner.eos_token_id = sorted({*outer, *token_ids(text.eos_token_id)})
    return inner


def text_name(stored: str) -> str | None:
    """The name in the text model of a wrapper's tensor `stored`; None for a tensor outside the text model."""
    before, inside, rest = stored.rpartition(INSIDE)
    if stored.startswith("lm_head."):  # newer wrappers hold the head themselves
        return stored
    if not inside or before not in ("", "model."):
        return None
    return rest if rest.startswith(("model.", "lm_head.")) else f"model.{rest}"


def text_names(stored: Iterable[str]) -> dict[str, str]:
    """{name in the text model: stored name} of a checkpoint's tensors; without a wrapper the two names are equal."""
    if not any(name.startswith((INSIDE, f"model.{INSIDE}")) for name in stored):
        return {name: name for name in stored}
    return {name: old for old in stored if (name := text_name(old)) is not None}
