"""Checkpoints: find, check, load and save them. Ordinary Hugging Face safetensors, with exact zeros where pruned."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from sparsedraft.base.errors import UserError, first_line
from sparsedraft.base.jsonfiles import read_object
from sparsedraft.models import quantizers
from sparsedraft.models.config import older_names, parallel
from sparsedraft.models.config.remote_code import refuse_model_code
from sparsedraft.models.config.schemas import check_model
from sparsedraft.models.config.wrapper import text_model
from sparsedraft.models.shards import Shards
from sparsedraft.models.skeleton import UNREADABLE
from sparsedraft.models.sources import locate
from sparsedraft.models.tokenizers.reader import read_tokenizer
from sparsedraft.models.tying import holds_other_head

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype of this name; UserError for one that is not float32, bfloat16 or float16."""
    if name not in DTYPES:
        raise UserError(f"--dtype {name} is not known: choose one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def device_named(name: str) -> torch.device:
    """The torch device of this name; UserError if torch does not have it here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here ({first_line(error)}); try cpu.") from None
    if device.type == "meta":
        raise UserError("--device meta computes nothing: give cpu or an accelerator.")
    return device


def find(ref: str | Path) -> Path:
    """The local folder of a checkpoint named by hub id, folder or .gguf file, checked to be a whole decoder LM.

    Raises UserError if it does not exist, is not a decoder-only LM, or its safetensors are missing or damaged.
    """
    folder = locate(str(ref))
    config = read_config(folder)
    if not is_decoder_lm(config):
        names = ", ".join(getattr(config, "architectures", None) or []) or "none"
        raise UserError(f"model {ref} is not a decoder-only language model (architecture: {names}).")
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers < 1:
        raise UserError(f"model {ref} has num_hidden_layers {layers} in its config.json: a model has one at least.")
    stored = len(Shards(folder).files)  # reads every header
    if isinstance(layers, int) and layers > stored:  # before as many are built
        raise UserError(f"model {ref} has num_hidden_layers {layers} in its config.json and {stored} tensors: mend it.")
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever a wrong value in a config can break inside a library
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UserError(f"model {ref} has a config.json that describes no model ({reason}): mend it.") from None
    return folder


def is_decoder_lm(config: PretrainedConfig) -> bool:
    """Whether the architecture is a decoder-only language model."""
    names = [str(name) for name in getattr(config, "architectures", None) or []]
    return not config.is_encoder_decoder and any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def identity_files(folder: Path) -> dict[str, Path]:
    """The files in `folder` that describe a model and its tokenizer, by name, without the weights.

    Where a server runs the model, the weights need not be here.
    """
    names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    names += ["chat_template.jinja", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"]
    return {name: folder / name for name in names if (folder / name).is_file()}


def read_config(folder: Path) -> PretrainedConfig:
    """The config of the model in `folder`; UserError if there is none that transformers knows.

    For a text model inside a wrapper it is the text model's config. `tie_word_embeddings` is true only if the stored
    head really is the embedding.
    """
    stored = _stored_config(folder)
    config = text_model(stored)
    for key in (*quantizers.KEYS, *parallel.FIELDS):
        if config is not stored and hasattr(stored, key):  # a wrapper's field holds for all of its models
            setattr(config, key, getattr(stored, key))
    if holds_other_head(config, folder):
        config.tie_word_embeddings = False
    return config


def _stored_config(folder: Path) -> PretrainedConfig:
    """The config exactly as config.json has it, a wrapper's included."""
    if not (folder / "config.json").is_file():
        raise UserError(f"model {folder} holds no config.json: give the folder of a Hugging Face checkpoint.")
    check_model(folder)
    refuse_model_code(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if not isinstance(config.get_text_config(), PretrainedConfig):
            raise ValueError("text_config describes no model")
        return config
    except (*UNREADABLE, OSError) as error:
        raise UserError(f"model {folder} has a config.json that cannot be read ({first_line(error)}).") from None


def load(ref: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> PreTrainedModel:
    """The model behind `ref` in evaluation mode.

    The model's `stored_dtype` is the checkpoint's dtype, so that `save` can write the same. Raises UserError as `find`
    does, and where the file lacks tensors of the architecture.
    """
    folder = find(ref)
    config = read_config(folder)
    kind = quantizers.check_runs(ref, config, Shards(folder), str(device))
    # a quantised model cannot be moved later
    options: dict[str, Any] = {"device_map": {"": torch.device(device)}} if kind else {}
    try:
        loaded: Any = (
            _unwrapped(folder, config, dtype)
            if is_wrapped(folder)
            else AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **options
            )
        )
    except (*UNREADABLE, ImportError, OSError, SafetensorError) as error:
        if kind:
            raise quantizers.unable(ref, kind, first_line(error)) from None
        raise UserError(f"model {ref} cannot be loaded ({first_line(error)}).") from None
    model, info = loaded
    if info["missing_keys"]:
        raise UserError(
            f"model {ref} lacks weights that its config asks for (first: {sorted(info['missing_keys'])[0]})."
        )
    model.config.tie_word_embeddings = config.tie_word_embeddings
    stored = getattr(config, "dtype", None)
    model.stored_dtype = stored if isinstance(stored, torch.dtype) else dtype
    return model.eval() if kind else model.to(device).eval()


def _unwrapped(folder: Path, config: PretrainedConfig, dtype: torch.dtype) -> Any:
    """(the text model inside a wrapper, transformers' loading info)."""
    shards = Shards(folder)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    weights = {name: shards.tensor(name) for name in shards.files}
    result = kind.from_pretrained(None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True)
    if (folder / "generation_config.json").is_file():
        result[0].generation_config = GenerationConfig.from_pretrained(folder)
    return result


def is_wrapped(folder: Path) -> bool:
    """Whether the checkpoint is a text model inside a wrapper."""
    stored = _stored_config(folder)
    return text_model(stored) is not stored


def write_config(source: Path, folder: Path) -> None:
    """Rewrite config.json in `folder`, a copy of that of `source`, so that every reader understands it.

    It becomes the text model's own, says whether the head is tied, and has the older names beside the new ones. A file
    that has all this already stays as it is, byte for byte.
    """
    config, stored = read_config(source), _stored_config(source)
    if type(config) is not type(stored) or config.tie_word_embeddings != stored.tie_word_embeddings:
        config.save_pretrained(folder)
    older_names.complete(folder)


def load_tokenizer(ref: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside the checkpoint `ref`; UserError where it has none."""
    folder = locate(str(ref), weights=False)
    try:
        return read_tokenizer(folder, f"model {ref}", "copy or download it again")
    except UserError:
        if (folder / "config.json").is_file():
            _stored_config(folder)  # transformers reads it for the tokenizer, too: it may be what is wrong
        raise


def stored_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype of the checkpoint that `model` was loaded from; the model's own dtype if it was not loaded."""
    return getattr(model, "stored_dtype", model.dtype)


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    sparsity: dict[str, Any] | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write safetensors, config and tokenizer into `folder`; weights in `dtype` (default: as the source was stored).

    `weights` is the state dict to write (default: the model's own, which is incomplete where the model is sharded).
    `sparsity` is what the checkpoint claims of its zeros: {"pattern", "sparsity", "linears": {name: zeros}}.
    Plain transformers can load the folder. The caller renames it when it is whole.
    """
    target = dtype or stored_dtype(model)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to(target) if tensor.is_floating_point() else tensor
        for name, tensor in (model.state_dict() if weights is None else weights).items()
    }
    tied = set(model.all_tied_weights_keys or {}) if model.config.get_text_config().tie_word_embeddings else set()
    model.save_pretrained(folder, state_dict={k: v for k, v in state.items() if k not in tied})
    config = read_object(folder / "config.json")  # save_pretrained notes the dtype in memory, not on disk
    (folder / "config.json").write_text(
        json.dumps({**config, "dtype": str(target).removeprefix("torch.")}, indent=2) + "\n"
    )
    tokenizer.save_pretrained(folder)
    older_names.complete(folder)
    if sparsity is not None:
        (folder / "sparsity.json").write_text(json.dumps(sparsity, indent=1) + "\n")
