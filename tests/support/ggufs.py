"""Tiny GGUF files with llama.cpp's names and layout, written from transformers' models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

CONTROL, NORMAL = 3, 1
Blocks = tuple[str, NDArray[np.uint8]]  # ggml's type, bytes [rows, those of a row]


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    keys: dict[str, Any] | None = None,
    tensors: Mapping[str, torch.Tensor | Blocks | None] | None = None,
    *,
    split: int = 0,
    pre: str = "gpt-2",
    ends: dict[str, int] | None = None,
) -> list[Path]:
    """`model` as llama.cpp's converter writes it (float32), of `split` tensors a part; the paths of the parts.

    `keys` of the architecture and `tensors` are added or take the place of others; None takes one away. `pre` says how
    the tokenizer splits text, `ends` what else ends a text ("eot": an id). A tensor may be quantised: Blocks.
    """
    arch = _arch(model)
    writer = GGUFWriter(path, arch, split_max_tensors=split)
    _add_keys(writer, {f"{arch}.{name}": value for name, value in (_keys(model.config) | (keys or {})).items()})
    _add_tokenizer(writer, tokenizer, pre)
    _add_keys(writer, {f"tokenizer.ggml.{name}_token_id": number for name, number in (ends or {}).items()})
    for name, tensor in ({**_tensors(model, arch), **(tensors or {})}).items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[1], raw_dtype=GGMLQuantizationType[tensor[0].upper()])
        elif tensor is not None:
            writer.add_tensor(name, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}-*.gguf")) if split else [path]


def _arch(model: PreTrainedModel) -> str:
    return {"gemma3_text": "gemma3"}.get(model.config.model_type, model.config.model_type)


def _keys(config: PretrainedConfig) -> dict[str, Any]:
    """The settings of a model by llama.cpp's names."""
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": (config.rope_parameters.get("full_attention") or config.rope_parameters)["rope_theta"],
        "vocab_size": config.vocab_size,
        "rope.dimension_count": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
    }


def _add_keys(writer: GGUFWriter, keys: dict[str, Any]) -> None:
    add = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool, list: writer.add_array}
    for name, value in keys.items():
        if value is not None:
            add.get(type(value), writer.add_uint32)(name, value)


def _add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, pre: str) -> None:
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    merges = [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def _tensors(model: PreTrainedModel, arch: str) -> dict[str, torch.Tensor | None]:
    """The model's weights by llama.cpp's names, as its converter lays them out."""
    config = model.config
    known = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(known, config.num_hidden_layers)
    found: dict[str, torch.Tensor | None] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, kind = name.rsplit(".", 1)
        if arch == "llama" and stem.endswith(("q_proj", "k_proj")):  # pairs lie side by side, not half a head apart
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
        if arch == "gemma3" and "norm" in stem:
            tensor = tensor + 1
        found[f"{names.get_name(stem)}.{kind}"] = tensor
    return found


def rope_freqs(rope: dict[str, Any], dims: int) -> torch.Tensor:
    """What llama.cpp's converter writes as rope_freqs.weight for Llama 3's scaling."""
    turns = rope["rope_theta"] ** (-torch.arange(0, dims, 2) / dims) / (2 * torch.pi)
    low, high, length = (
        rope[f"{n}"] for n in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    smooth = ((length * turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / rope["factor"] + smooth)


def rounded(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights that bfloat16 can hold, norms and biases away from what they begin as."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
        parameter.data = parameter.data.bfloat16().float()
    return model.eval()


def same(model: PreTrainedModel, folder: Path, length: int = 300) -> PreTrainedModel:
    """The model in `folder`, after its logits were found to be those of `model`, past the original context, too."""
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(3, 320, (1, length), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    return found


def read_back(path: Path) -> dict[str, torch.Tensor]:
    """What the gguf package makes of the tensors of a file, float32, by llama.cpp's names."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        found[tensor.name] = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).reshape(shape)
    return found


def as_in_file(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's weights by llama.cpp's names and in its order of rows."""
    return {name: tensor.float() for name, tensor in _tensors(model, _arch(model)).items() if tensor is not None}
