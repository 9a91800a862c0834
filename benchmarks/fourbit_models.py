"""The int4 pair and what it is compared with: packed folders that our own commands make once, in the cache folder.

An interrupted preparation goes on where it stopped. A target of 1.5B and its drafters take about 40 minutes.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from common import CACHE, MODEL, measured
from sparsedraft.base.places import slug
from sparsedraft.models import checkpoint
from sparsedraft.native.packed_folder import is_packed

TOKENS = "8192"  # of text that is pruned and rounded on
TARGET, DRAFTER = "Qwen/Qwen2.5-Coder-1.5B-Instruct", "Qwen/Qwen2.5-Coder-0.5B-Instruct"


@dataclass(frozen=True)
class Models:
    """`target`, `drafter`: the checkpoints; the target packed, and the drafters packed in int4 by what they are."""

    target: str
    drafter: str
    int4: Path
    int8: Path
    drafters: dict[str, Path]
    dense_int8: Path  # the drafter


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which models are measured."""
    parser.add_argument("--target", help=f"default: {TARGET}, in a quick check {MODEL}")
    parser.add_argument("--drafter", help=f"default: {DRAFTER}, in a quick check {MODEL}")
    parser.add_argument("--target-pack", type=Path, help="the target packed to int4; default: on what it writes")
    parser.add_argument("--fine-tuned", help="a drafter to measure beside the dense and the one-shot one: a checkpoint")
    parser.add_argument("--data", help="what is rounded and pruned on; default: what the target writes")


def prepare(options: argparse.Namespace) -> Models:
    """Make, or find in the cache, what the options name. UserError where a command fails."""
    target = options.target or (MODEL if options.quick else TARGET)
    drafter = options.drafter or (MODEL if options.quick else DRAFTER)
    folder = CACHE / "fourbit" / ("on-text-quick" if options.quick else "on-text")
    folder /= f"{slug(target.replace('/', '-'))}--{slug(drafter.replace('/', '-'))}"
    int8 = packed(target, folder / "target-int8", "--weights", "int8")
    data = options.data or _written(int8, folder / "data", options.quick)
    fast = ["--weights", "int4", "--head-weights", "int4", "--embedding-weights", "int8"]
    fast += ["--calibration", str(data), "--tokens", "512" if options.quick else TOKENS]
    checkpoints = {"dense": drafter, "one-shot 2:4": _one_shot(drafter, data, folder / "2of4", options.quick)}
    tuned = options.fine_tuned or (folder / "fine-tuned" if (folder / "fine-tuned").is_dir() else None)
    if tuned:
        checkpoints["fine-tuned"] = str(tuned)
    return Models(
        target, drafter, options.target_pack or packed(target, folder / "target-int4", *fast), int8,
        {name: packed(model, folder / slug(name.replace(":", "of").replace(" ", "-")), *fast)
         for name, model in checkpoints.items()},
        packed(drafter, folder / "dense-int8", "--weights", "int8"),
    )  # fmt: skip


def packed(model: str, out: Path, *how: str) -> Path:
    """The folder of `model` packed `how`, made in `out` unless it is packed already."""
    folder = checkpoint.find(model)
    if is_packed(folder):
        return folder
    measured("pack", model, "--out", out, *how)
    return out


def _written(target: Path, out: Path, quick: bool) -> Path:
    """What the target writes, to round and to prune on."""
    how = ["--limit", "16", "--max-new-tokens", "24"] if quick else ["--limit", "96", "--max-new-tokens", "128"]
    measured("distill", target, "demo:train", "--out", out, "--engine", "native", *how)
    return out


def _one_shot(drafter: str, data: Path, out: Path, quick: bool) -> str:
    """The drafter pruned to 2:4, its weights rounded to int4 in the same sweep."""
    how = ["--method", "magnitude"] if quick else ["--quantize", "int4"]
    tokens = "1024" if quick else TOKENS
    measured("prune", drafter, "--out", out, "--calibration", data, "--pattern", "2:4", "--tokens", tokens, *how)
    return str(out)
