"""The int4 pair and what it is compared with: packed folders that our own commands make once, in the cache folder.

An interrupted preparation goes on where it stopped. A target of 1.5B and its drafters take about 40 minutes.
"""

import argparse
from functools import cached_property
from pathlib import Path

from common import CACHE, MODEL, ROOT, measured
from sparsedraft.base.places import slug
from sparsedraft.models import checkpoint
from sparsedraft.native.packed_folder import is_packed

TOKENS, PRUNING = "4096", "16384"  # of text that is rounded on, and pruned on: with more a first run takes too long
TARGET, DRAFTER = "Qwen/Qwen2.5-Coder-1.5B-Instruct", "Qwen/Qwen2.5-Coder-0.5B-Instruct"
DISTILLED = ROOT / "docs/results/qwen-coder-long/distilled"  # what the default target wrote, in this repository


class Models:
    """What the options name, made or found in the cache as it is first asked for. UserError where a command fails."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.quick = options, options.quick
        self.target = options.target or (MODEL if self.quick else TARGET)
        self.drafter = options.drafter or (MODEL if self.quick else DRAFTER)
        both = f"{slug(self.target.replace('/', '-'))}--{slug(self.drafter.replace('/', '-'))}"
        self.folder = CACHE / "fourbit" / ("rounded-quick" if self.quick else f"pruned-{PRUNING}") / both

    @cached_property
    def int8(self) -> Path:
        """The target packed in int8."""
        return packed(self.target, self.folder / "target-int8", "--weights", "int8")

    @cached_property
    def dense_int8(self) -> Path:
        """The drafter packed in int8."""
        return packed(self.drafter, self.folder / "dense-int8", "--weights", "int8")

    @cached_property
    def int4(self) -> Path:
        """The target packed in int4, rounded on `data`."""
        return self.options.target_pack or packed(self.target, self.folder / "target-int4", *self._fast())

    @cached_property
    def drafters(self) -> dict[str, Path]:
        """The drafters in int4 by what they are."""
        found = {"dense": self.packed_drafter(self.drafter, "dense"), "one-shot 2:4": self.one_shot}
        return found | ({"fine-tuned": self.packed_drafter(self.tuned, "fine-tuned")} if self.tuned else {})

    @cached_property
    def tuned(self) -> str | None:
        """The trained drafter, if there is one."""
        kept = self.folder / "fine-tuned"
        return self.options.fine_tuned or (str(kept) if kept.is_dir() else None)

    @cached_property
    def one_shot(self) -> Path:
        """The drafter pruned to 2:4, its weights rounded to int4 in the same sweep, packed."""
        return self.packed_drafter(str(self.pruned("2:4")), "one-shot-2of4")

    def pruned(self, pattern: str, joint: bool = True) -> Path:
        """The drafter pruned to `pattern`; `joint`: its weights rounded to int4 in the same sweep."""
        name = pattern.replace(":", "of")
        out = self.folder / (name if joint or self.quick else f"{name}-float")
        how = ["--method", "magnitude"] if self.quick else ["--quantize", "int4"] if joint else []
        how += ["--calibration", str(self.data), "--pattern", pattern, "--tokens", "1024" if self.quick else PRUNING]
        measured("prune", self.drafter, "--out", out, *how)
        return out

    @cached_property
    def data(self) -> Path:
        """What the target writes, to round and to prune on."""
        if self.options.data:
            return Path(self.options.data)
        if self.target == TARGET and DISTILLED.is_dir():
            return DISTILLED
        how = (
            ["--limit", "16", "--max-new-tokens", "24"] if self.quick else ["--limit", "96", "--max-new-tokens", "128"]
        )
        measured("distill", self.int8, "demo:train", "--out", self.folder / "data", "--engine", "native", *how)
        return self.folder / "data"

    def packed_drafter(self, model: str, name: str) -> Path:
        """The drafter `model` packed in int4, in the folder `name`."""
        return packed(model, self.folder / name, *self._fast())

    def _fast(self) -> list[str]:
        how = ["--weights", "int4", "--head-weights", "int4", "--embedding-weights", "int8"]
        return [*how, "--calibration", str(self.data), "--tokens", "512" if self.quick else TOKENS]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which models are measured."""
    parser.add_argument("--target", help=f"default: {TARGET}, in a quick check {MODEL}")
    parser.add_argument("--drafter", help=f"default: {DRAFTER}, in a quick check {MODEL}")
    parser.add_argument("--target-pack", type=Path, help="the target packed to int4; default: on what it writes")
    parser.add_argument("--fine-tuned", help="a drafter to measure beside the dense and the one-shot one: a checkpoint")
    parser.add_argument("--data", help="what is rounded and pruned on; default: what the target writes")


def packed(model: str, out: Path, *how: str) -> Path:
    """The folder of `model` packed `how`, made in `out` unless it is packed already."""
    folder = checkpoint.find(model)
    if is_packed(folder):
        return folder
    measured("pack", model, "--out", out, *how)
    return out
