"""The native runtime: kernels, tokens at once, whole models, speculation; ratios inside one run.

    python benchmarks/runtime.py [--target MODEL] [--drafter MODEL] [--only kernels,tokens,models,speculation] [...]

Kernels walk through the weights of all layers of the drafter's shapes (random, each layer its own), so that they do
not sit in a cache; times of what is compared alternate, and a ratio is the median of neighbours'. The last line on
stdout is {"rows": [{"name", "ratio", "goal"}, ...]}.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import close, setup
from sparsedraft.base.console import console
from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import codes
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.models.skeleton import skeleton
from sparsedraft.native.extension import extension
from sparsedraft.native.layout import layout_of

Stopwatch = Callable[[], float]
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def ratio(name: str, value: float, goal: float | None, better: str = "more", **details: Any) -> dict[str, Any]:
    """One cell of the table."""
    met = None if goal is None else value >= goal if better == "more" else value <= goal
    sign = "" if goal is None else f" (goal: {'at least' if better == 'more' else 'at most'} {goal:g})"
    verdict = "" if met is None else " met" if met else " NOT MET"
    console.print(f"{name}: {value:.2f}{sign}{verdict} {details or ''}", soft_wrap=True, markup=False)
    return {"name": name, "ratio": round(value, 3), "goal": goal, "better": better, "met": met, **details}


def against(mine: Stopwatch, others: list[Stopwatch], repeat: int = 7) -> tuple[float, list[float]]:
    """(median seconds of mine, median ratio of each other's to mine), measured in turns."""
    mine(), [other() for other in others]
    times, ratios = [], [[] for _ in others]  # type: ignore[var-annotated]
    for _ in range(repeat):
        seconds = mine()
        times.append(seconds)
        for other, found in zip(others, ratios, strict=True):
            found.append(other() / seconds)
    return statistics.median(times), [statistics.median(found) for found in ratios]


def roof(pool_threads: int) -> float:
    """Bytes a second of reading 512 MB, the best of 5 times: what no kernel that reads its weights once can pass."""
    words = torch.ones(1 << 27, dtype=torch.int32)
    torch.set_num_threads(pool_threads)
    best = min(_seconds(lambda: words.sum(dtype=torch.int64)) for _ in range(5))
    module = extension()
    dense = [module.matrix(np.ones((4096, 4096), np.float32), "f32", "dense") for _ in range(8)]
    pool = module.Pool(pool_threads)
    again = min(module.time_multiply(dense, 1, 5, pool))
    return max(words.numel() * 4 / best, sum(m.bytes for m in dense) / again)


def torch_seconds(work: Callable[[], Any]) -> float:
    """Seconds of torch's `work`; its idle OpenMP threads, which would slow what is next, are left to fall asleep."""
    seconds = _seconds(work)
    time.sleep(0.3)
    return seconds


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Kernels:
    """Random weights of the drafter's shapes, layer by layer, in any layout."""

    def __init__(self, model: str, layers: int, threads: int) -> None:
        config = checkpoint.read_config(checkpoint.find(model))
        shapes = [tuple(m.weight.shape) for m in decoder_linears(skeleton(config)).values()]
        per_layer = len(shapes) // config.get_text_config().num_hidden_layers
        self.shapes, self.layers = shapes[:per_layer], layers
        self.weights = layers * sum(rows * columns for rows, columns in self.shapes)
        self.pool, self.threads = extension().Pool(threads), threads
        generator = torch.Generator().manual_seed(0)
        self.base = [torch.randn(shape, generator=generator) for shape in self.shapes]

    def made(self, values: str, layout: str, n: int = 0, density: float = 1.0) -> list[Any]:
        """The matrices of all layers. One layer's random weights serve for all, in memory of their own."""
        found: list[Any] = []
        each = [self._sparse(weight, layout, n, density) for weight in self.base]
        for _ in range(self.layers):
            for weight in each:
                if values == "i8":
                    q, scale = codes(weight, "int8")
                    found.append(extension().matrix(q[:, 0].numpy(), "i8", layout, n, scale[:, 0, 0].numpy()))
                    continue
                typed = weight.to(TYPES[values])
                raw = (typed.view(torch.int16) if typed.element_size() == 2 else typed).numpy()
                found.append(extension().matrix(raw, values, layout, n))
        return found

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


# What its makers published of DeepSparse, which they no longer maintain: text
# generation by MPT-7B, 60 % of the weights zero, int8, against dense float32, on 8 cores with AVX-512 and VNNI.
DEEPSPARSE = (
    7.0,
    "https://neuralmagic.com/blog/sparse-finetuning-for-accelerating-large-language-models-with-deepsparse/",
)

# name, values, layout, N, density, goals: against torch float32, against our dense 16-bit, against our dense int8
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


def kernels(model: str, layers: int, threads: int) -> list[dict[str, Any]]:
    """One token: each layout against torch float32 and our own dense kernels."""
    k = Kernels(model, layers, threads)
    limit = roof(threads)
    console.print(f"streaming read: {limit / 1e9:.1f} GB/s on {threads} threads")
    float32, bf16, int8 = k.torch_float32(), k.made("bf16", "dense"), k.made("i8", "dense")
    rows = []
    for name, values, layout, n, density, *goals in LINES:
        matrices = (
            bf16 if name == "dense bf16" else int8 if name == "dense int8" else k.made(values, layout, n, density)
        )
        seconds, ratios = against(k.watch(matrices), [float32, k.watch(bf16), k.watch(int8)])
        size = sum(m.bytes for m in matrices)
        details = {
            "gigaweights_per_second": round(k.weights / seconds / 1e9, 1),
            "gb_per_second": round(size / seconds / 1e9, 1), "bytes_per_weight": round(size / k.weights, 3),
        }  # fmt: skip
        for reference, value, goal in zip(
            ("torch float32", "own dense bf16", "own dense int8"), ratios, goals, strict=True
        ):
            rows.append(ratio(f"{name} / {reference}", value, goal, **details))
    limit = max(limit, *(row["gb_per_second"] * 1e9 for row in rows))  # a shared machine's bandwidth moves in a run
    for row in rows:
        row["of_roof"] = round(row["gb_per_second"] * 1e9 / limit, 2)
    console.print(f"the most that was read: {limit / 1e9:.1f} GB/s, of which each share is")
    for density in (0.25, 0.5):
        ours, (value,) = against(k.watch(k.made("bf16", "bitmask", 0, density)), [k.torch_csr(density)])
        name = f"{1 - density:.0%} unstructured: own bf16 / torch.sparse CSR in float32"
        rows.append(ratio(name, value, None, gigaweights_per_second=round(k.weights / ours / 1e9, 1)))
    published, source = DEEPSPARSE
    rows.append(ratio("DeepSparse, published: 60 % sparse int8 / dense float32", published, None, source=source))
    return rows


def tokens(model: str, layers: int, threads: int) -> list[dict[str, Any]]:
    """Several tokens at once, sparse against dense."""
    k = Kernels(model, layers, threads)
    dense, sparse = k.made("bf16", "dense"), k.made("bf16", "2:4", 2, 0.5)
    dense8, sparse8, quarter8 = k.made("i8", "dense"), k.made("i8", "2:4", 2, 0.5), k.made("i8", "N:8", 2, 0.25)
    rows = []
    for count, goal in ((2, 1.6), (4, 1.5), (8, 1.2)):
        _, (value,) = against(k.watch(sparse, count), [k.watch(dense, count)])
        rows.append(ratio(f"{count} tokens, 2:4 bf16 / own dense bf16", value, goal))
        for name, matrices in (("2:4", sparse8), ("2:8", quarter8)):
            _, (value,) = against(k.watch(matrices, count), [k.watch(dense8, count)])
            rows.append(ratio(f"{count} tokens, {name} int8 / own dense int8", value, None))
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="Qwen/Qwen2.5-Coder-1.5B-Instruct")
    parser.add_argument("--drafter", default="Qwen/Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--only", default="kernels,tokens,models,speculation")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--data", type=Path, help="distilled data of the target: calibration, and tokens of a trimmed head"
    )
    parser.add_argument(
        "--finetune", type=int, default=120_000, help="tokens of sparse fine-tuning of one drafter; 0: one-shot only"
    )
    parser.add_argument("--finetune-pattern", default="50 %", help="which: 2:4, 4:8, 2:8 or '50 %%'")
    parser.add_argument(
        "--more", nargs="*", default=[], help="more packed drafters, NAME=FOLDER; names of dense ones begin so"
    )
    parser.add_argument("--limit", type=int, default=4, help="prompts of the speculation part")
    parser.add_argument("--llama-cpp", type=Path, help="folder of llama.cpp's binaries")
    parser.add_argument("--gguf", type=Path, nargs=3, help="target Q8_0, drafter Q8_0, drafter Q4_K_M")
    parser.add_argument(
        "--openvino", nargs=2, help="an interpreter with openvino-genai, folder of the drafter's export"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench-runtime"), help="pruned and packed models")
    chosen = parser.parse_args(arguments)
    setup(chosen.threads)
    parts = chosen.only.split(",")
    rows: list[dict[str, Any]] = []
    if "kernels" in parts:
        rows += kernels(chosen.drafter, chosen.layers, chosen.threads)
    if "tokens" in parts:
        rows += tokens(chosen.drafter, min(chosen.layers, 12), chosen.threads)
    if {"models", "speculation"} & set(parts):
        import runtime_models

        rows += runtime_models.main(chosen, parts)
    close(rows)


if __name__ == "__main__":
    main()
