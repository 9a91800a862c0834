"""Layer-wise errors: SparseGPT against Wanda and magnitude at 50 %, and what --refine saves at 2:8 and 75 %.

    python studies/errors.py MODEL [--calibration PROMPTS] [--tokens 4096]

The error of a linear is that of its outputs on the calibration inputs, relative to the dense outputs. `python
benchmarks/generic_text.py FILE` writes generic text to calibrate on.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sparsedraft.base.console import console
from sparsedraft.layerwise import calibration, sequential
from sparsedraft.layerwise.sparsegpt import relative_error
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import linears_of
from sparsedraft.stages.prune.methods import METHODS
from sparsedraft.stages.prune.refine import refine
from study import close, setup

LENGTH = 512
REFINED = {"2:8": Pattern(2, 8), "75 %": Pattern()}


@torch.no_grad()
def errors(model: str, source: str, tokens: int) -> Iterator[dict[str, Any]]:
    """A row a linear: its error by method at 50 %, and the share of it that --refine takes away by pattern."""
    streamed = Streamed(checkpoint.find(model))
    ids = calibration.sequences(source, checkpoint.load_tokenizer(model), tokens, LENGTH, 0)
    with tempfile.TemporaryDirectory() as folder:
        activations = sequential.Activations(streamed, ids, Path(folder) / "hidden")
        for index, layer in sequential.walk(streamed, activations):
            hessians = sequential.hessians(layer, index, activations)
            for name, linear in linears_of(layer).items():
                weight, hessian = linear.weight.detach(), hessians[name]
                methods = {
                    method: relative_error(weight, prune(weight, hessian, Pattern(), 0.5, None)[0], hessian.H)
                    for method, prune in METHODS.items()
                }
                yield {"layer": index, "linear": name, **methods, "refine": refined(weight, hessian)}


def refined(weight: torch.Tensor, hessian: Any) -> dict[str, float]:
    """The share of SparseGPT's error at 75 % that --refine takes away, by pattern."""
    shares = {}
    for label, pattern in REFINED.items():
        pruned, keep = METHODS["sparsegpt"](weight, hessian, pattern, 0.75, None)
        plain = relative_error(weight, pruned, hessian.H)
        solved = relative_error(weight, refine(weight, pruned, keep, hessian.H) * keep, hessian.H)
        shares[label] = 1 - solved / plain if plain else 0.0
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="demo:train")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    setup(options.threads)
    rows = []
    for row in errors(options.model, options.calibration, options.tokens):
        rows.append(row)
        if not row["sparsegpt"] < row["wanda"] < row["magnitude"]:
            console.print(f"not in order: {row}")
    ordered = sum(row["sparsegpt"] < row["wanda"] < row["magnitude"] for row in rows)
    gains = {label: sum(row["refine"][label] for row in rows) / len(rows) for label in REFINED}
    close([{"linears": len(rows), "in_order": ordered, "refine_lowers_the_error_by": gains}])


if __name__ == "__main__":
    main()
