"""One-shot drafters of one model, pattern by pattern and method by method, against a target: α, MAL, layer-wise error.

    python benchmarks/patterns.py TARGET DRAFTER --prompts FILE --calibration DATA [--generic FILE] --out FOLDER

The target answers the prompts once (--each N: the first N of each of Spec-Bench's six tasks by the hash of their ids).
Each drafter is made, read over those answers (the greedy loop's own numbers, by simulation) and deleted; its row stays
in FOLDER/rows.jsonl, so that an interrupted run goes on with the next drafter. Hours on 2 cores for a model of 0.5B
parameters; --part 1/2 and --part 2/2 with one thread each, side by side, make the best use of them.
"""

import argparse
import json
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import close, setup
from sparsedraft.base.console import console
from sparsedraft.base.hashing import stable_order
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.stages.evaluate.rows import allowed
from sparsedraft.stages.evaluate.simulate import acceptance, simulate
from sparsedraft.stages.evaluate.summary import mean_alpha, merge
from sparsedraft.stages.finetune import quantize
from sparsedraft.stages.prune.drop_layers import drop_layers
from sparsedraft.stages.prune.stage import prune
from sparsedraft.text import prompts
from sparsedraft.writers.conversation import Answer, Responder, answer_all
from sparsedraft.writers.loaded import LoadedModel

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
OTHER_TASKS = ("translation", "summarization", "qa", "math_reasoning", "rag")  # the rest of Spec-Bench is MT-Bench


def chosen(source: str, each: int | None) -> list[prompts.Prompt]:
    """The prompts of `source`; with `each`, only so many of every task: those with the smallest SHA-256 of their id."""
    found = prompts.read(source)
    if each is None:
        return found
    tasks: dict[str, list[prompts.Prompt]] = defaultdict(list)
    for prompt in stable_order(found, lambda prompt: prompt.id):
        tasks[prompt.category if prompt.category in OTHER_TASKS else "mt_bench"].append(prompt)
    return [prompt for task in sorted(tasks) for prompt in tasks[task][:each]]


def answers_of(target: str, asked: list[prompts.Prompt], new_tokens: int, folder: Path) -> list[Answer]:
    """The target's greedy answers; from the journal where they are done."""
    side = LoadedModel.load(target, runtime="transformers")
    return answer_all(
        Responder(side.writer(16), side.tokenizer, Sampling(), new_tokens, context=side.context), asked,
        journal=folder / "target.jsonl", description="target answers", batch_size=16,
    )  # fmt: skip


def score(drafter: Path, answers: list[Answer], quantized: str = "none", dtype: str = "float32") -> dict[str, Any]:
    """α and MAL of the drafter in `drafter` on the target's answers, and α answer by answer.

    With `quantized` int8 or int4, of the drafter with its linears rounded so.
    """
    model = checkpoint.load(drafter, dtype=checkpoint.dtype_named(dtype))
    quantize.install(model, quantized)
    pairs = [(a.prompt_ids, a.answer_ids) for a in answers]
    rows: dict[int, dict[str, Any]] = {}
    for index, (shares, _) in acceptance(model, pairs, None, Sampling()):
        answer = answers[index]
        histograms = {str(k): simulate(shares > 0.5, k, allowed(answer)).to_dict() for k in KS}
        alpha = float(shares.double().mean())
        rows[index] = {"alpha": alpha, "tokens": len(answer.answer_ids), "histograms": histograms}
    found = list(rows.values())
    each = [[rows[i]["alpha"], rows[i]["tokens"]] for i in sorted(rows)]
    return {"alpha": mean_alpha(found), **{f"mal_{k}": merge(found, k).mal for k in KS}, "answers": each}


def plan(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every drafter to make: what is passed to `prune` or `drop_layers`, the calibration by name."""
    base = {"calibration": arguments.calibration, "tokens": arguments.tokens}
    drops = [{"name": "drop", "of": share, **base, "tokens": 8192} for share in (0.5, 0.75)]
    by_method = [[{"name": "prune", **pattern, **method, **base} for pattern in PATTERNS] for method in METHODS]
    auto = [
        {"name": "prune", **pattern, "allocation": allocation, **base}
        for allocation, patterns in (("auto", (2, 4, 0, 5)), ("owl", (0, 5)))
        for pattern in (PATTERNS[i] for i in patterns)
    ]
    texts = [{"name": "prune", **PATTERNS[0], **base, "method": "sparsegpt", "tokens": n} for n in (1024, 16384)]
    if arguments.generic:
        generic = {"name": "prune", "method": "sparsegpt", "calibration": arguments.generic}
        texts += [{**generic, **PATTERNS[0], "tokens": n} for n in (1024, arguments.tokens)]
        texts += [{**generic, **PATTERNS[4], "tokens": arguments.tokens}]
    sparsegpt, wanda, refined = by_method
    return [{"name": "dense"}, *drops, *sparsegpt, *auto[:2], *refined, *wanda, *texts, *auto[2:]]


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
        return work, prune(drafter, work, spec["calibration"], **options)
    # every layer has the same MACs, so this is what --match-macs would find for uniform sparsity
    layers = round(spec["of"] * checkpoint.read_config(checkpoint.find(drafter)).num_hidden_layers)
    return work, drop_layers(drafter, work, spec["calibration"], layers=layers, **options)


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
    arguments = parser.parse_args()
    setup(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    journal = arguments.out / "rows.jsonl"
    done = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    answers = answers_of(
        arguments.target, chosen(arguments.prompts, arguments.each), arguments.new_tokens, arguments.out
    )
    part, parts = (int(n) for n in arguments.part.split("/"))
    for number, spec in enumerate(plan(arguments)):
        if number % parts != part - 1 or any(row["spec"] == spec for row in done) or arguments.only not in label(spec):
            continue
        work = arguments.out / f"drafter-{number}"
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
    close(main())
