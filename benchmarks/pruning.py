"""Pruning: time against the forward passes it needs, and its parts; peak memory against `plan`; errors by method.

    python benchmarks/pruning.py [MODEL ...] [--tokens N] [--only speed,memory,errors]

MODEL: checkpoints, default SmolLM2-135M-Instruct. Speed and memory at N calibration tokens (default 65536, in sequences
of 512: 128 x 512, about an hour for a model of 1.5B parameters); errors on 4096.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import generic_text
from common import GIB, MODEL, close, measured, row, seconds, setup
from sparsedraft.base.console import console
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import linears_of
from sparsedraft.models.skeleton import skeleton
from sparsedraft.stages.prune import calibration, memory, sequential, stage
from sparsedraft.stages.prune.methods import METHODS
from sparsedraft.stages.prune.options import PruneOptions
from sparsedraft.stages.prune.sparsegpt import relative_error
from sparsedraft.stages.prune.streamed import Streamed

LENGTH = 512


def speed(model: str, tokens: int, pattern: str, source: str) -> dict:
    """Wall time of the whole stage against two forward passes of the decoder layers over the same batches."""
    loaded: Any = checkpoint.load(model)
    tokenizer = checkpoint.load_tokenizer(model)
    ids = calibration.sequences(source, tokenizer, tokens, LENGTH, 0)

    @torch.no_grad()
    def forward() -> None:
        for batch in ids.split(max(1, sequential.BATCH // LENGTH)):
            loaded.base_model(input_ids=batch, use_cache=False)

    with torch.no_grad():
        loaded.base_model(input_ids=ids[:1], use_cache=False)  # warm-up
    passes = seconds(forward) + seconds(forward)
    loaded = None  # its memory is not the stage's
    parts: dict[str, float] = defaultdict(float)

    def timed(name: str, work: Callable) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                parts[name] += time.perf_counter() - start

        return wrapper

    places = [
        (sequential.Activations, "__init__", "first layer's inputs"), (sequential, "hessians", "Hessians and forward"),
        (stage, "_prune_linear", "solve"), (stage, "relative_error", "errors"),
        (sequential.Activations, "advance", "propagation"), (stage, "_finish", "writing and checking"),
    ]  # fmt: skip
    originals = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, label), original in zip(places, originals, strict=True):
        setattr(owner, name, timed(label, original))
    try:
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"pattern": pattern, "tokens": tokens, "sequence_length": LENGTH}
            chosen = PruneOptions(model=model, out=Path(folder) / "out", calibration=source, **options)
            total = seconds(lambda: stage.prune(chosen))
    finally:
        for (owner, name, _), original in zip(places, originals, strict=True):
            setattr(owner, name, original)
    shares: dict = {label: f"{100 * spent / total:.0f}%" for label, spent in parts.items()}
    details: dict = {
        "seconds": round(total, 1),
        "two_passes": round(passes, 1),
        "tokens": ids.numel(),
        "shares": shares,
    }
    return row(
        f"pruning {name_of(model)} to {pattern}, against two forward passes",
        total / passes,
        2.5,
        better="less",
        **details,
    )


def peak(model: str, tokens: int, source: str) -> list[dict]:
    """Peak resident memory of the command in a process of its own, and how near the formula comes."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("--tokens", str(tokens), "--sequence-length", str(LENGTH))
        _, gib = measured("prune", model, "--out", f"{folder}/out", "--calibration", source, *options)
    predicted = memory.peak(skeleton(checkpoint.read_config(checkpoint.find(model))), 4) / GIB
    name = name_of(model)
    details: dict = {"tokens": tokens, "predicted_gib": round(predicted, 2)}
    return [
        row(f"pruning {name}, peak resident memory", gib, 3.5, unit="GiB", better="less", **details),
        row(f"pruning {name}, plan's peak off by", abs(predicted / gib - 1), 0.25, unit="", better="less"),
    ]


@torch.no_grad()
def errors(model: str, source: str, tokens: int = 4096) -> list[dict]:
    """Is SparseGPT's error below Wanda's and that below magnitude's on every linear? And what does --refine save?"""
    streamed = Streamed(checkpoint.find(model))
    ids = calibration.sequences(source, checkpoint.load_tokenizer(model), tokens, LENGTH, 0)
    ordered = count = 0
    gains: dict[str, list[float]] = {"2:8": [], "75 %": []}
    with tempfile.TemporaryDirectory() as folder:
        activations = sequential.Activations(streamed, ids, Path(folder) / "hidden")
        for index, layer in sequential.walk(streamed, activations):
            found = sequential.hessians(layer, index, activations)
            for name, linear in linears_of(layer).items():
                weight, hessian = linear.weight.detach(), found[name]
                by = {
                    m: relative_error(weight, work(weight, hessian, Pattern(), 0.5, None)[0], hessian.H)
                    for m, work in METHODS.items()
                }
                count += 1
                if by["sparsegpt"] < by["wanda"] < by["magnitude"]:
                    ordered += 1
                else:
                    console.print(f"not in order: layer {index}, {name}: {by}")
                for label, pattern in (("2:8", Pattern(2, 8)), ("75 %", Pattern())):
                    pair = [
                        relative_error(
                            weight, stage._prune_linear(weight, hessian, "sparsegpt", pattern, 0.75, r), hessian.H
                        )
                        for r in (False, True)
                    ]
                    gains[label].append(1 - pair[1] / pair[0] if pair[0] else 0.0)
    rows = [
        row(
            f"{name_of(model)}: linears with error SparseGPT < Wanda < magnitude at 50 %",
            ordered / count,
            1,
            unit="of all",
        )
    ]
    for label, gain in gains.items():
        rows.append(
            row(
                f"{name_of(model)}: --refine lowers the error at {label} by (mean)", sum(gain) / len(gain), 0.1, unit=""
            )
        )
    return rows


def name_of(model: str) -> str:
    return Path(model).name


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[MODEL])
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--calibration", help="default: generic text, see generic_text.py")
    parser.add_argument("--patterns", default="unstructured,2:4,2:8", help="of the speed runs")
    parser.add_argument("--only", default="speed,memory,errors")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        source = chosen.calibration or str(generic_text.write(Path(folder) / "generic.jsonl"))
        return [line for model in chosen.models for line in benchmark(model, source, chosen)]


def benchmark(model: str, source: str, chosen: argparse.Namespace) -> list[dict]:
    rows = []
    if "speed" in chosen.only:
        for pattern in chosen.patterns.split(","):
            rows.append(speed(model, chosen.tokens, pattern, source))
    if "memory" in chosen.only:
        rows += peak(model, chosen.tokens, source)
    if "errors" in chosen.only:
        rows += errors(model, source)
    return rows


if __name__ == "__main__":
    setup()
    close(main())
