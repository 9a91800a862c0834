"""Checkpoints: find, check, load and save them. Ordinary Hugging Face safetensors, with exact zeros where pruned."""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sparsedraft.decoder import count_zeros, decoder_linears
from sparsedraft.errors import UserError
from sparsedraft.sources import locate

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
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); try cpu.") from None
    return device


def find(ref: str | Path) -> Path:
    """The local folder of a checkpoint named by hub id, folder or .gguf file, checked to be a whole decoder LM.

    Raises UserError if it does not exist, is not a decoder-only LM, or its safetensors are missing or damaged.
    """
    folder = locate(str(ref))
    config = read_config(folder)
    names = [str(name) for name in getattr(config, "architectures", None) or []]
    if config.is_encoder_decoder or not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        raise UserError(
            f"model {ref} is not a decoder-only language model (architecture: {', '.join(names) or 'none'})."
        )
    _check_weights(folder)
    return folder


def read_config(folder: Path) -> PretrainedConfig:
    """The config in `folder`; UserError where there is none that transformers knows."""
    if not (folder / "config.json").is_file():
        raise UserError(f"model {folder} holds no config.json: give the folder of a Hugging Face checkpoint.")
    try:
        return AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(
            f"model {folder} has a config.json that cannot be read ({str(error).splitlines()[0]})."
        ) from None


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"model {folder} holds no .safetensors file: only safetensors are loaded (pickles can run code)."
        )
    for file in files:
        if not file.is_file():
            raise UserError(f"model {folder} lacks its shard {file.name}: copy or download it again.")
        try:
            with safe_open(file, "pt") as opened:  # reads the header and checks it against the file's size
                opened.keys()
        except (SafetensorError, OSError, struct.error) as error:
            raise UserError(
                f"model file {file} is damaged or cut short ({error}): copy or download it again."
            ) from None


def load(ref: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> PreTrainedModel:
    """The model behind `ref` in evaluation mode.

    Its checkpoint's own dtype is remembered in `stored_dtype` so that `save` can write the same. Raises UserError as
    `find` does, and where tensors of the architecture are missing from the file.
    """
    folder = find(ref)
    stored = getattr(read_config(folder), "dtype", None)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, output_loading_info=True
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model {ref} cannot be loaded ({str(error).splitlines()[0]}).") from None
    model, info = loaded
    if info["missing_keys"]:
        raise UserError(
            f"model {ref} lacks weights that its config asks for (first: {sorted(info['missing_keys'])[0]})."
        )
    model.stored_dtype = stored if isinstance(stored, torch.dtype) else dtype
    return model.to(device).eval()


def load_tokenizer(ref: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside the checkpoint `ref`; UserError where it has none."""
    folder = locate(str(ref))
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or ["no tokenizer files"])[0]
        raise UserError(f"model {ref} has no tokenizer that can be read ({reason}).") from None


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a generation: the generation config's and the tokenizer's."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    found = set(ids) if isinstance(ids, list | tuple) else {ids}
    return frozenset(int(i) for i in (found | {tokenizer.eos_token_id}) if i is not None)


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    sparsity: dict[str, Any] | None = None,
) -> None:
    """Write safetensors, config and tokenizer into `folder`; weights in `dtype` (default: as the source was stored).

    `sparsity` is what the checkpoint claims of its zeros: {"pattern", "sparsity", "linears": {name: zeros}}.
    Loadable by plain transformers. The caller owns the atomic rename of the folder.
    """
    target = dtype or getattr(model, "stored_dtype", next(model.parameters()).dtype)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to(target) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    tied = set(model.all_tied_weights_keys or {}) if model.config.get_text_config().tie_word_embeddings else set()
    model.save_pretrained(folder, state_dict={k: v for k, v in state.items() if k not in tied})
    config = json.loads((folder / "config.json").read_text())  # save_pretrained notes the dtype in memory, not on disk
    (folder / "config.json").write_text(
        json.dumps({**config, "dtype": str(target).removeprefix("torch.")}, indent=2) + "\n"
    )
    tokenizer.save_pretrained(folder)
    if sparsity is not None:
        (folder / "sparsity.json").write_text(json.dumps(sparsity, indent=1) + "\n")


def claimed_sparsity(folder: Path) -> dict[str, Any] | None:
    """What the checkpoint says of its zeros (`sparsity.json`), or None for a dense or foreign checkpoint."""
    file = folder / "sparsity.json"
    return json.loads(file.read_text()) if file.is_file() else None


def check_sparsity(model: PreTrainedModel, folder: Path) -> dict[str, Any] | None:
    """The checkpoint's claim of zeros, after proving it against the weights; None where it claims nothing.

    Raises UserError if a linear has fewer zeros than claimed or breaks its N:M pattern.
    """
    from sparsedraft.pattern import Pattern

    claim = claimed_sparsity(folder)
    if claim is None:
        return None
    pattern, linears = Pattern.parse(claim["pattern"]), decoder_linears(model)
    for name, zeros in claim["linears"].items():
        if name not in linears:
            raise UserError(f"checkpoint {folder} claims a mask for {name}, which the model does not have.")
        weight = linears[name].weight.detach()
        if count_zeros(weight) < zeros or not pattern.holds(weight):
            raise UserError(
                f"checkpoint {folder} lies: {name} is not {claim['pattern']} with {zeros} zeros as sparsity.json says; "
                "prune it again."
            )
    return claim
