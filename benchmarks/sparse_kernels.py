"""Kernels of the native engine: sparse weights against dense ones, one token and several; ratios inside one run.

    python benchmarks/sparse_kernels.py [--model MODEL] [--only one,several,four]

Kernels walk through the weights of all layers of the model's shapes (random, each layer its own), so that they do not
sit in a cache. Times of what is compared alternate, and a ratio is the median of neighbours'. About 10 minutes.
"""

import argparse
import warnings
from typing import Any

import torch

from common import MODEL, Stopwatch, against, parser, run, torch_seconds
from record import Table
from sparsedraft.base.console import console
from sparsedraft.models import checkpoint
from sparsedraft.native.extension import extension
from sparsedraft.native.layout_choice import int4_layout_of, layout_of
from sparsedraft.native.random_layers import RandomLayers, shapes_of_a_layer, streaming_read


class Layers(RandomLayers):
    """Random weights of a model's shapes, layer by layer, in any layout; and how long they take."""

    def __init__(self, model: str, layers: int, threads: int) -> None:
        config = checkpoint.read_config(checkpoint.find(model))
        super().__init__(shapes_of_a_layer(config), layers)
        self.pool, self.threads = extension().Pool(threads), threads

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
            sparse = [self.sparse(weight, "bitmask", 0, density).to_sparse_csr() for weight in self.base]
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
    limit = streaming_read(layers.threads)
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
    limit = streaming_read(layers.threads)
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
