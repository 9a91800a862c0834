"""Models of random weights straight from a config, written a layer at a time: packed in int4, and as Q4_0 files.

A model of 14 billion weights cannot be had everywhere; what a token through its shapes costs can.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import save_file
from torch import Tensor

from sparsedraft.base.files import write_atomic
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import group_of
from sparsedraft.models.gguf.tensor_names import Names
from sparsedraft.models.weight_files import INDEX
from sparsedraft.native.packed_folder import FORMAT, HEADER, is_packed
from sparsedraft.native.packed_format import MatrixEntry

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
QWEN = {"rope_type": "default", "rope_theta": 1e6}


def _config(family: str, sizes: tuple[int, int, int, int, int, int, int], tied: bool) -> dict[str, Any]:
    hidden, inner, layers, heads, kv_heads, head_dim, vocabulary = sizes
    llama = family == "llama"
    return {
        "architectures": ["LlamaForCausalLM" if llama else "Qwen2ForCausalLM"], "model_type": family,
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocabulary,
        "max_position_embeddings": 131072 if llama else 32768, "rms_norm_eps": 1e-5 if llama else 1e-6,
        "hidden_act": "silu", "tie_word_embeddings": tied, "torch_dtype": "bfloat16",
        "rope_parameters": LLAMA3 if llama else QWEN,
    }  # fmt: skip


SHAPES = {
    "Llama-3.1-8B": _config("llama", (4096, 14336, 32, 32, 8, 128, 128256), tied=False),
    "Llama-3.2-3B": _config("llama", (3072, 8192, 28, 24, 8, 128, 128256), tied=True),
    "Llama-3.2-1B": _config("llama", (2048, 8192, 16, 32, 8, 64, 128256), tied=True),
    "Qwen2.5-14B": _config("qwen2", (5120, 13824, 48, 40, 8, 128, 152064), tied=False),
    "Qwen2.5-1.5B": _config("qwen2", (1536, 8960, 28, 12, 2, 128, 151936), tied=True),
    "Qwen2.5-0.5B": _config("qwen2", (896, 4864, 24, 14, 2, 64, 151936), tied=True),
}
BIASED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")  # of qwen2


def linears(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Rows and columns of the linears of a layer."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, heads), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip


def layers_of_equal_macs(config: dict[str, Any], kept: float) -> int:
    """Layers of a layer-pruned model that computes as much as all of them with a share `kept` of their weights."""
    return round(config["num_hidden_layers"] * kept)


def random_matrix(
    rows: int, columns: int, kind: str, dice: np.random.Generator
) -> tuple[MatrixEntry, dict[str, Tensor]]:
    """A matrix of int4 of this kind (see packed_format), its codes, places and scales random."""
    pattern = Pattern() if kind == "dense" else Pattern.parse(kind)
    group = group_of(pattern)
    entry = MatrixEntry(kind, "int4", rows, columns, group)
    scale = dice.uniform(0.001, 0.01, (rows, -(-columns // group))).astype(np.float16)
    stored = columns // 2 if kind == "dense" else columns // pattern.m * pattern.n // 2
    values = dice.integers(0, 256, (rows, stored), np.uint8)
    tensors = {"values": torch.from_numpy(values), "scale": torch.from_numpy(scale)}
    if kind == "dense":
        return entry, tensors
    tensors["values"] = tensors["values"].flatten()
    # masks of a byte: one group of eight, or two of four
    some = [mask for mask in range(256) if all((mask >> at & (1 << pattern.m) - 1).bit_count() == pattern.n
                                              for at in range(0, 8, pattern.m))]  # fmt: skip
    tensors["index"] = torch.from_numpy(np.array(some, np.uint8)[dice.integers(0, len(some), (rows, columns // 8))])
    return entry, tensors


def write_packed(folder: Path, config: dict[str, Any], kind: str = "dense") -> Path:
    """The packed folder of a model of `config` in int4, its decoder linears of this kind; written once."""
    if is_packed(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Any] = {}
    where: dict[str, str] = {}
    for number, part in enumerate(_parts(config)):
        dice, tensors = np.random.default_rng(number), {}
        for name, shape in part.items():
            if len(shape) == 1:
                tensors[name] = torch.ones(shape) if "norm" in name else torch.full(shape, 0.01)
                continue
            linear = name.removesuffix(".weight")
            rows, columns = shape
            entry, stored = random_matrix(rows, columns, kind if ".layers." in name else "dense", dice)
            entries[linear] = entry.to_dict()
            tensors |= {f"{linear}.{key}": tensor for key, tensor in stored.items()}
        file = f"model-{number + 1:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    write_json(folder / INDEX, {"metadata": {}, "weight_map": where})
    quantised = {"quantization_config": {"quant_method": "sparsedraft", "weights": "int4"}}
    write_json(folder / "config.json", config | quantised)
    write_json(folder / HEADER, {"format": FORMAT, "version": 2, "weights": "int4", "linears": entries})
    return folder


def _parts(config: dict[str, Any]) -> Iterator[dict[str, tuple[int, ...]]]:
    """The shapes of all tensors: embedding, final norm and head, then layer by layer."""
    hidden = config["hidden_size"]
    ends: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    ends["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        ends["lm_head.weight"] = (config["vocab_size"], hidden)
    yield ends
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        part: dict[str, tuple[int, ...]] = {f"{base}{name}.weight": shape for name, shape in linears(config).items()}
        if config["model_type"] == "qwen2":
            part |= {f"{base}{name}.bias": part[f"{base}{name}.weight"][:1] for name in BIASED}
        part |= {f"{base}{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        yield part


def write_gguf(path: Path, config: dict[str, Any]) -> Path:
    """A Q4_0 file of a model of `config`, random weights and a vocabulary of numbers; written once."""
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomic(path) as temporary:
        writer = GGUFWriter(temporary, config["model_type"], use_temp_file=False)
        _add_keys(writer, config)
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        names = Names(config["model_type"], config["num_hidden_layers"], heads, kv_heads)
        shapes = [(name, shape) for part in _parts(config) for name, shape in part.items()]
        for name, shape in shapes:
            kind = GGMLQuantizationType.F32 if len(shape) == 1 else GGMLQuantizationType.Q4_0
            size = (shape[0],) if len(shape) == 1 else (shape[0], shape[1] // 32 * 18)
            dtype, count = (np.dtype(np.float32), 4) if len(shape) == 1 else (np.dtype(np.uint8), 1)
            writer.add_tensor_info(names.of(name), size, dtype, int(np.prod(size)) * count, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for number, (_, shape) in enumerate(shapes):
            writer.write_tensor_data(_blocks(shape, np.random.default_rng(number)))
        writer.close()
    return path


def _add_keys(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([str(number) for number in range(config["vocab_size"])])
    writer.add_token_types([1] * config["vocab_size"])
    writer.add_token_merges(["0 1"])
    writer.add_eos_token_id(0)


def _blocks(shape: tuple[int, ...], dice: np.random.Generator) -> np.ndarray:
    """Random blocks of Q4_0, or ones."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    blocks = dice.integers(0, 256, (shape[0], shape[1] // 32, 18), np.uint8)
    scale = dice.uniform(0.001, 0.01, (*blocks.shape[:2], 1)).astype(np.float16)
    blocks[..., :2] = scale.view(np.uint8)
    return blocks.reshape(shape[0], -1)
