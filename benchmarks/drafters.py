"""The packed target and drafters of the native engine's benchmarks: made once, in the cache folder, by our commands.

An interrupted preparation goes on where it stopped. The defaults take about an hour on 2 cores; see `add_options`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from common import CACHE, MODEL, measured
from sparsedraft.base.places import slug

PATTERNS = {"2:4": "2:4", "4:8": "4:8", "2:8": "2:8", "50 %": "unstructured"}


@dataclass(frozen=True)
class Models:
    """`target`, `drafter`: the checkpoints; `packed`: the target in int8, and `drafters` by what they are."""

    target: str
    drafter: str
    packed: Path
    drafters: dict[str, Path]


@dataclass(frozen=True)
class Sizes:
    """How much the preparation makes: prompts and answers of the target, calibration, training, the trimmed head."""

    conversations: int
    calibration: int  # tokens
    training: int  # tokens; 0: one-shot drafters only
    pruning: tuple[str, ...]  # options of `sparsedraft prune`
    head: int  # tokens that a trimmed head keeps
    patterns: tuple[str, ...]


QUICK = Sizes(
    conversations=12, calibration=1024, training=0, pruning=("--method", "magnitude"), head=32768, patterns=("2:4",)
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the preparation."""
    parser.add_argument("--target", default="Qwen/Qwen2.5-Coder-1.5B-Instruct")
    parser.add_argument("--drafter", default="Qwen/Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--conversations", type=int, default=512, help="that the target writes, to learn from")
    parser.add_argument("--training", type=int, default=80_000, help="tokens of sparse fine-tuning; 0: one-shot only")
    parser.add_argument("--patterns", default="2:4;2:8;50 %", help=f"of {'; '.join(PATTERNS)}; the last is fine-tuned")


def prepare(options: argparse.Namespace) -> Models:
    """Make, or find in the cache, what the options name. UserError where a command fails."""
    target, drafter = (MODEL, MODEL) if options.quick else (options.target, options.drafter)
    sizes = QUICK
    if not options.quick:
        patterns = tuple(options.patterns.split(";"))
        sizes = Sizes(options.conversations, 16384, options.training, ("--refine",), 32768, patterns)
    folder = CACHE / f"{slug(target.replace('/', '-'))}--{slug(drafter.replace('/', '-'))}"
    folder /= f"{sizes.conversations}-{sizes.calibration}-{sizes.training}"
    packed = folder / "target"
    measured("pack", target, "--out", packed, "--weights", "int8")
    data = _data(packed, folder / "data", sizes.conversations, options.quick)
    checkpoints = {"dense": drafter, **_sparse(drafter, data, folder, sizes)}
    return Models(target, drafter, packed, _packed(checkpoints, data, folder, sizes.head))


def _data(packed: Path, out: Path, conversations: int, quick: bool) -> Path:
    """What the target writes: prompts and answers, in a quick check answers alone."""
    how: list[str] = ["--mode", "magpie"]
    if quick:
        how = ["demo:train", "--max-new-tokens", "24"]
    measured("distill", packed, *how, "--engine", "native", "--limit", str(conversations), "--out", out)
    return out


def _sparse(drafter: str, data: Path, folder: Path, sizes: Sizes) -> dict[str, str]:
    """The drafter pruned to each pattern on `data`; the last of them is also fine-tuned on it (SD²)."""
    checkpoints = {}
    for name in sizes.patterns:
        out = folder / slug(PATTERNS[name])
        how = ["--pattern", PATTERNS[name], "--tokens", str(sizes.calibration), *sizes.pruning]
        measured("prune", drafter, "--out", out, "--calibration", data, *how)
        checkpoints[name] = str(out)
    if sizes.training:
        name = sizes.patterns[-1]
        out = folder / f"{slug(PATTERNS[name])}-sd2"
        how = ["--tokens", str(sizes.training), "--learning-rate", "1e-5", "--sequence-length", "512"]
        how += ["--rows-per-step", "4", "--no-train-embeddings", "--validation-prompts", "24", "--dtype", "bfloat16"]
        measured("finetune", checkpoints[name], data, "--out", out, *how)
        checkpoints[f"SD2 {name}"] = str(out)
    return checkpoints


def _packed(checkpoints: dict[str, str], data: Path, folder: Path, head: int) -> dict[str, Path]:
    """Each checkpoint packed to int8, its head whole and trimmed."""
    packed = {}
    for name, model in checkpoints.items():
        out = folder / "packed" / slug(name.replace(" ", "-").replace("%", "percent"))
        measured("pack", model, "--out", out, "--weights", "int8")
        packed[f"{name} int8"] = out
        out = out.with_name(f"{out.name}-trimmed")
        measured("pack", model, "--out", out, "--weights", "int8", "--head-tokens", str(head), "--head-data", data)
        packed[f"{name} int8, head {head}"] = out
    return packed
