"""One-shot drafters of one model, pattern by pattern and method by method, against a target: α, MAL, layer-wise error.

    python benchmarks/patterns.py TARGET DRAFTER --prompts FILE --calibration DATA [--generic FILE] --out FOLDER

The target answers the prompts once. Each drafter is made, read over those answers (the greedy loop's own numbers, by
simulation) and deleted; its row stays in FOLDER/rows.jsonl, so that an interrupted run goes on with the next drafter.
Hours on 2 cores for a model of 0.5B parameters.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from common import close, setup
from sparsedraft import checkpoint, prompts
from sparsedraft.console import console
from sparsedraft.conversation import Answer, answer_all
from sparsedraft.measure.evaluate import mean_alpha, merge
from sparsedraft.measure.simulate import acceptance, simulate
from sparsedraft.prune.drop_stage import drop_layers
from sparsedraft.prune.stage import prune
from sparsedraft.speculate.sampling import Sampling

PATTERNS: list[dict[str, Any]] = [
    {"pattern": "unstructured", "sparsity": 0.5},
    {"pattern": "2:4"},
    {"pattern": "4:8"},
    {"pattern": "3:8"},
    {"pattern": "2:8"},
    {"pattern": "unstructured", "sparsity": 0.75},
]
METHODS: list[dict[str, Any]] = [{"method": "sparsegpt"}, {"method": "wanda"}, {"method": "sparsegpt", "refine": True}]
KS = (3, 5, 8)


def answers_of(target: str, source: str, new_tokens: int, folder: Path) -> list[Answer]:
    """The target's greedy answers; from the journal where they are done."""
    return answer_all(
        checkpoint.load(target), checkpoint.load_tokenizer(target), prompts.read(source),
        journal=folder / "target.jsonl", description="target answers", sampling=Sampling(),
        max_new_tokens=new_tokens, batch_size=16, seed=0,
    )  # fmt: skip


def score(drafter: Path, answers: list[Answer]) -> dict[str, Any]:
    """α and MAL of the drafter in `drafter` on the target's answers."""
    pairs = [(a.prompt_ids, a.answer_ids) for a in answers]
    rows = []
    for index, shares in acceptance(checkpoint.load(drafter), pairs, None, Sampling()):
        answer = answers[index]
        histograms = {str(k): simulate(shares > 0.5, k, answer.max_new_tokens).to_dict() for k in KS}
        row = {"alpha": float(shares.double().mean()), "tokens": len(answer.answer_ids), "histograms": histograms}
        rows.append(row)
    return {"alpha": mean_alpha(rows), **{f"mal_{k}": merge(rows, k).mal for k in KS}}


def plan(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every drafter to make: what is passed to `prune` or `drop_layers`, the calibration by name."""
    base = {"calibration": arguments.calibration, "tokens": arguments.tokens}
    drops = [{"name": "drop", "of": share, **base, "tokens": 8192} for share in (0.5, 0.75)]
    by_method = [[{"name": "prune", **pattern, **method, **base} for pattern in PATTERNS] for method in METHODS]
    auto = [
        {"name": "prune", **pattern, "allocation": allocation, **base}
        for allocation in ("auto", "owl")
        for pattern in (PATTERNS[2], PATTERNS[4], PATTERNS[0], PATTERNS[5])
    ]
    texts = [{"name": "prune", **PATTERNS[0], **base, "method": "sparsegpt", "tokens": n} for n in (1024, 8192, 16384)]
    if arguments.generic:
        generic = {"name": "prune", "method": "sparsegpt", "calibration": arguments.generic}
        texts += [{**generic, **PATTERNS[0], "tokens": n} for n in (1024, arguments.tokens)]
        texts += [{**generic, **PATTERNS[4], "tokens": arguments.tokens}]
    sparsegpt, wanda, refined = by_method
    return [{"name": "dense"}, *drops, *sparsegpt, *auto[:1], *refined, *wanda, *texts, *auto[1:]]


def label(spec: dict[str, Any]) -> str:
    """What a row is, in a few words."""
    if spec["name"] != "prune":
        return f"{spec['name']} {spec.get('of', '')}".strip()
    text = Path(spec["calibration"]).stem
    pattern = spec["pattern"] if "sparsity" not in spec else f"{spec['sparsity']:.0%}"
    how = "refine" if spec.get("refine") else spec.get("method", "sparsegpt")
    return f"{pattern} {spec.get('allocation', 'uniform')} {how} {text} {spec['tokens']}"


def make(spec: dict[str, Any], drafter: str, work: Path) -> tuple[Path, dict[str, Any]]:
    """The drafter of one row: its folder, and what its stage said."""
    options = {k: v for k, v in spec.items() if k not in ("name", "calibration", "of")}
    if spec["name"] == "dense":
        return checkpoint.find(drafter), {}
    if spec["name"] == "prune":
        return work, prune(drafter, work, spec["calibration"], overwrite=True, **options)
    # every layer has the same MACs, so this is what --match-macs would find for uniform sparsity
    layers = round(spec["of"] * checkpoint.read_config(checkpoint.find(drafter)).num_hidden_layers)
    return work, drop_layers(drafter, work, spec["calibration"], layers=layers, overwrite=True, **options)


def main() -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("drafter")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--calibration", required=True, help="distilled data of the target")
    parser.add_argument("--generic", help="prompts of other text, to calibrate on for comparison")
    parser.add_argument("--tokens", type=int, default=4096, help="calibration tokens")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--only", default="", help="only rows with this word in their label")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    journal = arguments.out / "rows.jsonl"
    done = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    answers = answers_of(arguments.target, arguments.prompts, arguments.new_tokens, arguments.out)
    work = arguments.out / "drafter"
    for spec in plan(arguments):
        if any(row["spec"] == spec for row in done) or arguments.only not in label(spec):
            continue
        start = time.perf_counter()
        folder, made = make(spec, arguments.drafter, work)
        seconds = time.perf_counter() - start
        row: dict[str, Any] = {
            "label": label(spec), "spec": spec, "seconds": round(seconds, 1), **score(folder, answers),
            **{k: made[k] for k in ("sparsity", "macs_per_token", "mean_relative_error", "dropped") if k in made},
        }  # fmt: skip
        done.append(row)
        with open(journal, "a") as file:
            file.write(json.dumps(row) + "\n")
        console.print(row)
        shutil.rmtree(work, ignore_errors=True)
    return done


if __name__ == "__main__":
    setup()
    close(main())
