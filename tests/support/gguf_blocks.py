"""Random weights in the blocks of GGUF files, and what the gguf package reads in them; a tiny model of all types."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray
from torch import Tensor

from ggufs import rounded, write_gguf
from sparsedraft.native.blocks import BLOCKS
from tiny import build_llama, build_tokenizer

KINDS = tuple(BLOCKS)
OF_LAYERS = {  # of the first layer; in the second ffn_gate is of q4_0, ffn_up of float16, the others of float32
    "attn_q": "q4_k", "attn_k": "q6_k", "attn_v": "q5_k", "attn_output": "q8_0",
    "ffn_gate": "q4_1", "ffn_up": "q5_0", "ffn_down": "q5_1",
}  # fmt: skip
SIZES = {"hidden_size": 256, "intermediate_size": 512, "layers": 2}


def random_blocks(kind: str, rows: int, columns: int, size: float = 0.01, seed: int = 0) -> NDArray[np.uint8]:
    """Blocks uint8 [rows, bytes] of any codes and scales; float16 numbers of about `size`, negative ones, too."""
    block, rng = BLOCKS[kind], np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, columns // block.inputs, block.bytes), dtype=np.uint8)
    for at in block.halves:
        halves = (rng.standard_normal((*raw.shape[:2], 1)) * size).astype(np.float16)
        raw[..., at : at + 2] = halves.view(np.uint8)
    return raw.reshape(rows, -1)


def dequantised(kind: str, raw: NDArray[np.uint8]) -> Tensor:
    """The weights float32 [rows, columns] as the gguf package reads them."""
    return torch.from_numpy(quants.dequantize(raw, GGMLQuantizationType[kind.upper()])).view(len(raw), -1)


def quantised(
    path: Path, tied: bool, embedding: str = "q6_k", head: str | None = None
) -> dict[str, tuple[str, np.ndarray]]:
    """Write a llama of all types as the GGUF file `path`; its blocks by name."""
    model = rounded(build_llama(tie_word_embeddings=tied, **SIZES))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    of = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    of |= {"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
    of |= {"ffn_down": "mlp.down_proj"}
    found = {}
    for seed, (name, kind) in enumerate(OF_LAYERS.items()):
        rows, columns = shapes[f"model.layers.0.{of[name]}.weight"]
        size = 1e-4 if kind.endswith("_k") else 2e-3  # so that weights are of about one size
        found[f"blk.0.{name}.weight"] = kind, random_blocks(kind, rows, columns, size, seed)
    rows, columns = shapes["model.embed_tokens.weight"]
    found["token_embd.weight"] = embedding, random_blocks(embedding, rows, columns, 1e-4, 99)
    found["blk.1.ffn_gate.weight"] = "q4_0", four_bits(*shapes["model.layers.1.mlp.gate_proj.weight"])
    found["blk.1.ffn_up.weight"] = "f16", halves(*shapes["model.layers.1.mlp.up_proj.weight"])
    if head is not None:
        makers = {"q4_0": four_bits, "f16": halves}
        make = makers.get(head, partial(random_blocks, head, size=1e-4))
        found["output.weight"] = head, make(*shapes["lm_head.weight"])
    write_gguf(path, model, build_tokenizer(), tensors=found)
    return found


def halves(rows: int, columns: int) -> np.ndarray:
    """Random float16, which bfloat16 does not hold."""
    return (np.random.default_rng(6).standard_normal((rows, columns)) * 0.02).astype(np.float16)


def four_bits(rows: int, columns: int) -> np.ndarray:
    """Random blocks of q4_0, one of them with the scale 0."""
    rng = np.random.default_rng(5)
    raw = rng.integers(0, 256, (rows, columns // 32, 18), dtype=np.uint8)
    raw[..., :2] = (rng.standard_normal((rows, columns // 32, 1)) * 0.01).astype(np.float16).view(np.uint8)
    raw[3, 0, :2] = 0
    return raw.reshape(rows, -1)
