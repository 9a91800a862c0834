"""Random weights of given shapes in any layout, to time the kernels on; and how fast this machine reads memory.

What a token costs does not depend on what the weights say, so it can be measured for weights that nobody has made.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import int4_codes, int8_codes
from sparsedraft.models.decoder import decoder_layers, linears_of
from sparsedraft.models.skeleton import skeleton
from sparsedraft.native.extension import extension

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
WORDS = 1 << 27  # of 4 bytes that `streaming_read` reads: more than any cache holds


def streaming_read(threads: int) -> float:
    """Bytes a second of reading 512 MB, the best of 5 times: no kernel that reads its weights once can be faster."""
    words = torch.ones(WORDS, dtype=torch.int32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    best = min(_seconds_of_sum(words) for _ in range(5))
    torch.set_num_threads(before)
    module = extension()
    dense = [module.matrix(np.ones((4096, 4096), np.float32), "f32", "dense") for _ in range(8)]
    pool = module.Pool(threads)
    again = min(module.time_multiply(dense, 1, 5, pool))
    return max(words.numel() * 4 / best, sum(m.bytes for m in dense) / again)


def _seconds_of_sum(words: Tensor) -> float:
    start = time.perf_counter()
    words.sum(dtype=torch.int64)
    return time.perf_counter() - start


def shapes_of_a_layer(config: PretrainedConfig) -> list[tuple[int, int]]:
    """[rows, columns] of the linears of the first decoder layer. UserError where there are no plain linears."""
    layer = decoder_layers(skeleton(config))[0]
    return [(linear.out_features, linear.in_features) for linear in linears_of(layer).values()]


class RandomLayers:
    """Random weights for the linears of one layer, whose `shapes` are [rows, columns]; in memory `layers` times."""

    def __init__(self, shapes: Sequence[tuple[int, int]], layers: int) -> None:
        self.shapes, self.layers = [*shapes], layers
        self.weights = layers * sum(rows * columns for rows, columns in shapes)
        generator = torch.Generator().manual_seed(0)
        self.base = [torch.randn(shape, generator=generator) for shape in self.shapes]

    def matrices(self, values: str, layout: str, n: int = 0, density: float = 1.0) -> list[Any]:
        """The extension's matrices of all layers, each in memory of its own, though of the same weights.

        `values`: f32, f16, bf16, i8 or i4. `layout`, and `n` of N:8: as the extension calls them (see layout_choice).
        """
        stored = [_fields(self.sparse(weight, layout, n, density), values, layout, n) for weight in self.base]
        return [extension().matrix(*fields) for _ in range(self.layers) for fields in stored]

    def sparse(self, weight: Tensor, layout: str, n: int, density: float) -> Tensor:
        """`weight` with the zeros that the layout is for."""
        if layout == "dense":
            return weight
        pattern = Pattern(2, 4) if layout == "2:4" else Pattern(n, 8) if layout == "N:8" else Pattern()
        return weight * keep_mask(pattern, weight.abs(), 1 - density)


def _fields(weight: Tensor, values: str, layout: str, n: int) -> tuple[Any, ...]:
    """What the extension makes a matrix of: values, their type, layout, N, scales of rows, of groups, their size."""
    if values == "i4":
        group = {"2:4": 64, "N:8": 256 // n if n else 32}.get(layout, 32)  # 32 stored values
        codes = int4_codes(weight, group)
        return codes.codes.numpy(), "i4", layout, n, None, codes.scale.view(torch.uint16).numpy(), group
    if values == "i8":
        q, scale = int8_codes(weight)
        return q.numpy(), "i8", layout, n, scale.numpy()
    typed = weight.to(TYPES[values])
    return (typed.view(torch.int16) if typed.element_size() == 2 else typed).numpy(), values, layout, n
