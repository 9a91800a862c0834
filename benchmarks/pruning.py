"""Pruning: time against the forward passes it needs, and peak memory against `plan`.

    python benchmarks/pruning.py [MODEL ...] [--tokens N] [--only speed,memory]

MODEL: checkpoints, by default SmolLM2-135M-Instruct. N calibration tokens in sequences of 512 (by default 16,384: about
10 minutes; 65,536 with a model of 1.5B parameters take an hour).
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

import generic_text
from common import GIB, MODEL, measured, parser, run, seconds
from record import Table
from sparsedraft.layerwise import calibration, sequential
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_layers
from sparsedraft.models.skeleton import skeleton
from sparsedraft.stages.prune import memory, stage
from sparsedraft.stages.prune.layer_drop import cut_config
from sparsedraft.stages.prune.options import PruneOptions

LENGTH = 512
QUICK_LAYERS = 3  # of the model in a quick check: the sweep of a layer takes as long for few tokens as for many


def speed(model: str, tokens: int, pattern: str, source: str, table: Table) -> None:
    """Wall time of the whole stage against two forward passes of the decoder layers over the same batches."""
    loaded: Any = checkpoint.load(model)
    ids = calibration.sequences(source, checkpoint.load_tokenizer(model), tokens, LENGTH, 0)

    @torch.no_grad()
    def forward() -> None:
        for batch in ids.split(max(1, sequential.BATCH // LENGTH)):
            loaded.base_model(input_ids=batch, use_cache=False)

    with torch.no_grad():
        loaded.base_model(input_ids=ids[:1], use_cache=False)  # warm-up
    passes = seconds(forward) + seconds(forward)
    loaded = None  # its memory is not the stage's
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {"pattern": pattern, "tokens": tokens, "sequence_length": LENGTH}
        options = PruneOptions(model=model, out=Path(folder) / "out", calibration=source, **how)
        total = seconds(lambda: stage.prune(options))
    figures = {"seconds": round(total, 1), "two_passes": round(passes, 1), "tokens": ids.numel()}
    name = f"pruning {Path(model).name} to {pattern}, times two forward passes"
    table.limit(name, total / passes, 2.5, "x", **figures)


def peak(model: str, tokens: int, source: str, table: Table) -> None:
    """Peak resident memory of the command in a process of its own, and how near the formula comes."""
    with tempfile.TemporaryDirectory() as folder:
        how = ("--tokens", str(tokens), "--sequence-length", str(LENGTH))
        _, gib = measured("prune", model, "--out", f"{folder}/out", "--calibration", source, *how)
    predicted = memory.peak(skeleton(checkpoint.read_config(checkpoint.find(model))), 4) / GIB
    name = f"pruning {Path(model).name}"
    table.limit(f"{name}, peak resident memory", gib, 3.5, "GiB", tokens=tokens, predicted_gib=round(predicted, 2))
    table.limit(f"{name}, plan's peak off by", abs(predicted / gib - 1), 0.25)


def shallow(model: str, folder: Path) -> str:
    """The first layers of `model` as a checkpoint in `folder`."""
    loaded = checkpoint.load(model)
    del decoder_layers(loaded)[QUICK_LAYERS:]
    cut_config(loaded.config, range(QUICK_LAYERS))
    out = folder / f"{Path(model).name}-{QUICK_LAYERS}-layers"
    checkpoint.save(loaded, checkpoint.load_tokenizer(model), out)
    return str(out)


def work(options: argparse.Namespace, table: Table) -> None:
    tokens, patterns = (1024, "2:4") if options.quick else (options.tokens, options.patterns)
    with tempfile.TemporaryDirectory() as folder:
        source = options.calibration or str(generic_text.write(Path(folder) / "generic.jsonl"))
        models = [shallow(model, Path(folder)) for model in options.models] if options.quick else options.models
        for model in models:
            for pattern in patterns.split(",") if "speed" in options.only else ():
                speed(model, tokens, pattern, source, table)
            if "memory" in options.only:
                peak(model, tokens, source, table)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("models", nargs="*", default=[MODEL])
    arguments.add_argument("--tokens", type=int, default=16384)
    arguments.add_argument("--calibration", help="default: generic text, see generic_text.py")
    arguments.add_argument("--patterns", default="unstructured,2:4,2:8", help="of the speed runs")
    arguments.add_argument("--only", default="speed,memory")
    run("pruning", arguments.parse_args(), work)
