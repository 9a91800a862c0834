"""Kernels of the native engine: sparse weights against dense ones, one token and several; ratios inside one run.

    python benchmarks/sparse_kernels.py [--model MODEL] [--only one,several,four]

Kernels walk through the weights of all layers of the model's shapes (random, each layer its own), so that they do not
sit in a cache. Times of what is compared alternate, and a ratio is the median of neighbours'. About 10 minutes.
"""

import argparse
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import MODEL, Stopwatch, against, parser, run, seconds, torch_seconds
from record import Table
from sparsedraft.base.console import console
from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import int4_codes, int8_codes
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.models.skeleton import skeleton
from sparsedraft.native.extension import extension
from sparsedraft.native.layout_choice import int4_layout_of, layout_of

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def roof(threads: int) -> float:
    """Bytes a second of reading 512 MB, the best of 5 times: no kernel that reads its weights once can be faster."""
    words = torch.ones(1 << 27, dtype=torch.int32)
    torch.set_num_threads(threads)
    best = min(seconds(lambda: words.sum(dtype=torch.int64)) for _ in range(5))
    module = extension()
    dense = [module.matrix(np.ones((4096, 4096), np.float32), "f32", "dense") for _ in range(8)]
    pool = module.Pool(threads)
    again = min(module.time_multiply(dense, 1, 5, pool))
    return max(words.numel() * 4 / best, sum(m.bytes for m in dense) / again)


class Layers:
    """Random weights of a model's shapes, layer by layer, in any layout."""

    def __init__(self, model: str, layers: int, threads: int) -> None:
        config = checkpoint.read_config(checkpoint.find(model))
        shapes = [tuple(m.weight.shape) for m in decoder_linears(skeleton(config)).values()]
        per_layer = len(shapes) // config.get_text_config().num_hidden_layers
        self.shapes, self.layers = shapes[:per_layer], layers
        self.weights = layers * sum(rows * columns for rows, columns in self.shapes)
        self.pool, self.threads = extension().Pool(threads), threads
        generator = torch.Generator().manual_seed(0)
        self.base = [torch.randn(shape, generator=generator) for shape in self.shapes]

    def matrices(self, values: str, layout: str, n: int = 0, density: float = 1.0) -> list[Any]:
        """The matrices of all layers. One layer's random weights serve for all, in memory of their own."""
        layers: list[Any] = []
        each = [self._sparse(weight, layout, n, density) for weight in self.base]
        for _ in range(self.layers):
            for weight in each:
                if values == "i4":
                    group = {"2:4": 64, "N:8": 256 // n if n else 32}.get(layout, 32)  # 32 stored values
                    codes = int4_codes(weight, group)
                    scales = codes.scale.view(torch.uint16).numpy()
                    layers.append(extension().matrix(codes.codes.numpy(), "i4", layout, n, None, scales, group))
                    continue
                if values == "i8":
                    q, scale = int8_codes(weight)
                    layers.append(extension().matrix(q.numpy(), "i8", layout, n, scale.numpy()))
                    continue
                typed = weight.to(TYPES[values])
                raw = (typed.view(torch.int16) if typed.element_size() == 2 else typed).numpy()
                layers.append(extension().matrix(raw, values, layout, n))
        return layers

    def _sparse(self, weight: Tensor, layout: str, n: int, density: float) -> Tensor:
        if layout == "dense":
            return weight
        pattern = Pattern(2, 4) if layout == "2:4" else Pattern(n, 8) if layout == "N:8" else Pattern()
        return weight * keep_mask(pattern, weight.abs(), 1 - density)

    def watch(self, matrices: list[Any], tokens: int = 1) -> Stopwatch:
        return lambda: extension().time_multiply(matrices, tokens, 1, self.pool)[0]

    def torch_float32(self, tokens: int = 1) -> Stopwatch:
        weights = [weight.clone() for _ in range(self.layers) for weight in self.base]
        inputs = {weight.shape[1]: torch.randn(tokens, weight.shape[1]) for weight in self.base}

        def walk() -> None:
            torch.set_num_threads(self.threads)
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)

        return lambda: torch_seconds(walk)

    def torch_csr(self, density: float) -> Stopwatch:
        """torch.sparse's CSR in float32, the weights that are not zero of an unstructured mask."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR a beta
            sparse = [self._sparse(weight, "bitmask", 0, density).to_sparse_csr() for weight in self.base]
            weights = [weight.clone() for _ in range(self.layers) for weight in sparse]
        inputs = {weight.shape[1]: torch.randn(weight.shape[1]) for weight in self.base}

        def walk() -> None:
            torch.set_num_threads(self.threads)
            for weight in weights:
                weight @ inputs[weight.shape[1]]

        return lambda: torch_seconds(walk)


# name, values, layout, N, density, goals against torch float32, our dense bf16 and our dense int8 (None: no goal)
LINES: list[tuple[str, str, str, int, float, float | None, float | None, float | None]] = [
    ("dense bf16", "bf16", "dense", 0, 1, None, None, None),
    ("dense int8", "i8", "dense", 0, 1, None, None, None),
    ("2:4 f16", "f16", "2:4", 2, 0.5, 3.5, 1.65, None),
    ("2:4 bf16", "bf16", "2:4", 2, 0.5, 3.5, 1.65, None),
    ("4:8 bf16", "bf16", "N:8", 4, 0.5, 3.3, 1.5, None),
    ("2:8 bf16", "bf16", "N:8", 2, 0.25, 6.5, 2.9, None),
    ("2:4 int8", "i8", "2:4", 2, 0.5, 6, None, 1.45),
    ("4:8 int8", "i8", "N:8", 4, 0.5, None, None, None),
    ("3:8 int8", "i8", "N:8", 3, 0.375, None, None, None),
    ("2:8 int8", "i8", "N:8", 2, 0.25, None, None, 2.2),
    ("75 % unstructured bf16", "bf16", layout_of("bitmask", 0.25, 1024)[0], 0, 0.25, None, 1.8, None),
    ("75 % unstructured int8", "i8", layout_of("bitmask", 0.25, 1024)[0], 0, 0.25, None, None, None),
    ("50 % unstructured bf16", "bf16", "bitmask", 0, 0.5, None, 1, None),
    ("50 % unstructured int8", "i8", "bitmask", 0, 0.5, None, None, None),
]


def one_token(layers: Layers, table: Table, repeat: int) -> None:
    """Each layout against torch float32 and our own dense kernels."""
    limit = roof(layers.threads)
    console.print(f"streaming read: {limit / 1e9:.1f} GB/s on {layers.threads} threads")
    float32, bf16, int8 = layers.torch_float32(), layers.matrices("bf16", "dense"), layers.matrices("i8", "dense")
    references = {
        "torch float32": float32, "own dense bf16": layers.watch(bf16), "own dense int8": layers.watch(int8)
    }  # fmt: skip
    speeds = {}
    for name, values, layout, n, density, *goals in LINES:
        dense = {"dense bf16": bf16, "dense int8": int8}
        matrices = dense.get(name) or layers.matrices(values, layout, n, density)
        taken, ratios = against(layers.watch(matrices), [*references.values()], repeat)
        size = sum(m.bytes for m in matrices)
        speeds[name] = size / taken
        figures = {
            "gigaweights_per_second": round(layers.weights / taken / 1e9, 1),
            "gb_per_second": round(size / taken / 1e9, 1), "bytes_per_weight": round(size / layers.weights, 3),
        }  # fmt: skip
        for reference, value, goal in zip(references, ratios, goals, strict=True):
            label = f"{name} / {reference}"
            table.note(label, value, **figures) if goal is None else table.ratio(label, value, goal, **figures)
    limit = max(limit, *speeds.values())  # a shared machine's bandwidth moves during a run
    table.note("streaming read, GB/s", limit / 1e9)
    for name, speed in speeds.items():
        table.note(f"{name}: share of the streaming read", speed / limit)


def torch_sparse(layers: Layers, table: Table, repeat: int) -> None:
    """Our bitmask layout against torch.sparse."""
    for density in (0.25, 0.5):
        bitmask = layers.watch(layers.matrices("bf16", "bitmask", 0, density))
        taken, (value,) = against(bitmask, [layers.torch_csr(density)], repeat)
        name = f"{1 - density:.0%} unstructured: own bf16 / torch.sparse CSR in float32"
        table.note(name, value, gigaweights_per_second=round(layers.weights / taken / 1e9, 1))


# name, layout, N, density, goal against our dense int4, least share of the streaming read
FOUR_BITS: list[tuple[str, str, int, float, float | None, float | None]] = [
    ("dense int4", "dense", 0, 1, None, 0.8),
    ("2:4 int4", "2:4", 2, 0.5, 1.25, 0.8),
    ("4:8 int4", "N:8", 4, 0.5, None, None),
    ("2:8 int4", "N:8", 2, 0.25, 1.8, 0.7),
    ("75 % unstructured int4", int4_layout_of("bitmask", 0.25)[0], 0, 0.25, 1.6, None),
]


def four_bits(layers: Layers, table: Table, repeat: int) -> None:
    """int4: one token in each layout against dense int4 and the streaming read; more tokens against int8."""
    limit = roof(layers.threads)
    dense = layers.matrices("i4", "dense")
    int8 = layers.watch(layers.matrices("i8", "dense"))
    for name, layout, n, density, goal, least in FOUR_BITS:
        matrices = dense if name == "dense int4" else layers.matrices("i4", layout, n, density)
        taken, (to_dense, to_int8) = against(layers.watch(matrices), [layers.watch(dense), int8], repeat)
        size = sum(m.bytes for m in matrices)
        figures = {"gb_per_second": round(size / taken / 1e9, 1), "bytes_per_weight": round(size / layers.weights, 3)}
        table.note(f"{name} / own dense int8", to_int8, **figures)
        if goal is not None:
            table.ratio(f"{name} / own dense int4", to_dense, goal, **figures)
        if least is not None:
            table.ratio(f"{name}: share of the streaming read", size / taken / limit, least)
    for count in (4, 8, 64):
        eight = layers.watch(layers.matrices("i8", "dense"), count)
        taken, (value,) = against(layers.watch(dense, count), [eight], repeat)
        speed = {"gigamacs_per_second": round(layers.weights * count / taken / 1e9, 1)}
        table.note(f"{count} tokens, dense int4 / own dense int8", value, **speed)


def several_tokens(layers: Layers, table: Table, repeat: int) -> None:
    """Several tokens at once, sparse against dense."""
    dense, sparse = layers.matrices("bf16", "dense"), layers.matrices("bf16", "2:4", 2, 0.5)
    dense8 = layers.matrices("i8", "dense")
    sparse8 = {"2:4": layers.matrices("i8", "2:4", 2, 0.5), "2:8": layers.matrices("i8", "N:8", 2, 0.25)}
    for count, goal in ((2, 1.6), (4, 1.5), (8, 1.2)):
        _, (value,) = against(layers.watch(sparse, count), [layers.watch(dense, count)], repeat)
        table.ratio(f"{count} tokens, 2:4 bf16 / own dense bf16", value, goal)
        for name, matrices in sparse8.items():
            _, (value,) = against(layers.watch(matrices, count), [layers.watch(dense8, count)], repeat)
            table.note(f"{count} tokens, {name} int8 / own dense int8", value)


def work(options: argparse.Namespace, table: Table) -> None:
    model = MODEL if options.quick else options.model
    layers, repeat = (4, 2) if options.quick else (options.layers, 7)
    if "one" in options.only:
        one_token(Layers(model, layers, options.threads), table, repeat)
        torch_sparse(Layers(model, layers, options.threads), table, repeat)
    if "several" in options.only:
        several_tokens(Layers(model, min(layers, 12), options.threads), table, repeat)
    if "four" in options.only:
        four_bits(Layers(model, min(layers, 12), options.threads), table, repeat)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="Qwen/Qwen2.5-Coder-0.5B-Instruct", help="whose shapes the weights have")
    arguments.add_argument("--layers", type=int, default=24)
    arguments.add_argument("--only", default="one,several,four")
    run("sparse_kernels", arguments.parse_args(), work)
