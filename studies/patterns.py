"""One-shot drafters of one model, pattern by pattern and method by method, against a target: α, MAL, layer-wise error.

    python studies/patterns.py TARGET DRAFTER --prompts FILE --calibration DATA [--generic FILE] --out FOLDER

The target answers the prompts once (--each N: the first N of each of Spec-Bench's six tasks by the hash of their ids).
Each drafter is made, read over those answers (the greedy loop's own numbers, by simulation) and deleted; its row stays
in FOLDER/rows.jsonl, so that an interrupted run goes on with the next drafter. Hours on 2 cores for a model of 0.5B
parameters; --part 1/2 and --part 2/2 with one thread each, side by side, make the best use of them.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from scoring import answers_of, score, select
from sparsedraft.models import checkpoint
from sparsedraft.stages.prune.drop_layers import drop_layers
from sparsedraft.stages.prune.options import DropLayersOptions, PruneOptions
from sparsedraft.stages.prune.stage import prune
from study import Rows, close, setup

PATTERNS: list[dict[str, Any]] = [
    {"pattern": "unstructured", "sparsity": 0.5},
    {"pattern": "2:4"},
    {"pattern": "4:8"},
    {"pattern": "3:8"},
    {"pattern": "2:8"},
    {"pattern": "unstructured", "sparsity": 0.75},
]
METHODS: list[dict[str, Any]] = [{"method": "sparsegpt"}, {"method": "wanda"}, {"method": "sparsegpt", "refine": True}]


def plan(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every drafter to make: what is passed to `prune` or `drop_layers`, the calibration by name."""
    base = {"calibration": arguments.calibration, "tokens": arguments.tokens}
    drops = [{"name": "drop", "of": share, **base, "tokens": 8192} for share in (0.5, 0.75)]
    by_method = [[{"name": "prune", **pattern, **method, **base} for pattern in PATTERNS] for method in METHODS]
    owl = [{"name": "prune", **PATTERNS[i], "allocation": "owl", **base} for i in (0, 5)]
    texts = [{"name": "prune", **PATTERNS[0], **base, "method": "sparsegpt", "tokens": n} for n in (1024, 16384)]
    if arguments.generic:
        generic = {"name": "prune", "method": "sparsegpt", "calibration": arguments.generic}
        texts += [{**generic, **PATTERNS[0], "tokens": n} for n in (1024, arguments.tokens)]
        texts += [{**generic, **PATTERNS[4], "tokens": arguments.tokens}]
    sparsegpt, wanda, refined = by_method
    return [{"name": "dense"}, *drops, *sparsegpt, *refined, *wanda, *texts, *owl]


def label(spec: dict[str, Any]) -> str:
    """What a row is, in a few words."""
    if spec["name"] != "prune":
        return f"{spec['name']} {spec.get('of', '')}".strip()
    text = Path(spec["calibration"]).stem
    pattern = spec["pattern"] if "sparsity" not in spec else f"{spec['sparsity']:.0%}"
    how = "refine" if spec.get("refine") else spec.get("method", "sparsegpt")
    return f"{pattern} {spec.get('allocation', 'uniform')} {how} {text} {spec['tokens']}"


def make(spec: dict[str, Any], drafter: str, work: Path) -> tuple[Path, dict[str, Any]]:
    """The drafter of one row: its folder, and the result of its stage."""
    options = {k: v for k, v in spec.items() if k not in ("name", "calibration", "of")}
    if spec["name"] == "dense":
        return checkpoint.find(drafter), {}
    if spec["name"] == "prune":
        return work, prune(PruneOptions(model=drafter, out=work, calibration=spec["calibration"], **options))
    # every layer has the same MACs, so this is what --match-macs would find for uniform sparsity
    layers = round(spec["of"] * checkpoint.read_config(checkpoint.find(drafter)).num_hidden_layers)
    drop = DropLayersOptions(model=drafter, out=work, calibration=spec["calibration"], layers=layers, **options)
    return work, drop_layers(drop)


def main() -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("drafter")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--calibration", required=True, help="distilled data of the target")
    parser.add_argument("--generic", help="prompts of other text, to calibrate on for comparison")
    parser.add_argument("--tokens", type=int, default=4096, help="calibration tokens")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--each", type=int, help="prompts of each of Spec-Bench's tasks (default: all prompts)")
    parser.add_argument("--part", default="1/1", help="I/N: every N-th row only, starting with the I-th")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="only rows with this word in their label")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    setup(options.threads)
    rows = Rows(options.out)
    answers = answers_of(options.target, select(options.prompts, options.each), options.new_tokens, options.out)
    part, parts = (int(n) for n in options.part.split("/"))
    for number, spec in list(enumerate(plan(options)))[part - 1 :: parts]:
        if options.only not in label(spec) or any(row["spec"] == spec for row in rows.rows):
            continue
        work = options.out / f"drafter-{number}"
        start = time.perf_counter()
        folder, result = make(spec, options.drafter, work)
        seconds = round(time.perf_counter() - start, 1)
        kept = ("sparsity", "macs_per_token", "mean_relative_error", "dropped")
        rows.add(
            {
                "label": label(spec), "spec": spec, "seconds": seconds, **score(folder, answers),
                **{key: result[key] for key in kept if key in result},
            }
        )  # fmt: skip
        shutil.rmtree(work, ignore_errors=True)
    return rows.rows


if __name__ == "__main__":
    close(main())
