r"""What fine-tuning is worth, loss by loss, at one budget: α and MAL of sparse drafters on a target's held-out answers.

    python studies/reference_tasks.py tasks.jsonl --longest 900
    sparsedraft distill TARGET tasks.jsonl --out DATA --limit 160 --max-new-tokens 128 \
        --top-k-logprobs 16 --evaluation FILE
    python studies/quality.py TARGET DRAFTER --data DATA --tasks tasks.jsonl --prompts FILE --out FOLDER

The target answers the prompts (--each of each of Spec-Bench's tasks) once. Every arm is a drafter of a recipe: pruned
on DATA, trained on --tokens tokens (prompts and answers, packed), scored by simulation, and deleted; its row stays in
FOLDER/rows.jsonl, so that an interrupted run goes on with the next arm. "references" trains on the human-written
answers to the same prompts. Ten minutes or more an arm on 2 cores for drafters of 0.5B parameters.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from scoring import answers_of, score, select
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers.ends import end_of_turn
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.run import make_drafter
from sparsedraft.stages.distill.datafolder import write
from sparsedraft.text import dataset, prompts
from study import Rows, close, setup

PATTERNS: dict[str, dict[str, Any]] = {
    "50%": {"pattern": "unstructured", "sparsity": 0.5},
    "2:4": {"pattern": "2:4"},
}
GRADUAL: dict[str, list[Any]] = {"50%": [0.3, 0.4], "2:4": ["3:4"]}  # on the way there
# How each arm is fine-tuned; "data" and "gradual" say what else is special.
KL: dict[str, Any] = {"loss": "kl"}
ARMS: dict[str, dict[str, Any]] = {
    "nll, references": {"loss": "nll", "data": "references"},
    "nll": {"loss": "nll"},
    "kl": KL,
    "tvd": {"loss": "tvd"},
    "kl, int8-aware": {**KL, "quantize": "int8"},
    "kl, gradual": {**KL, "gradual": True},
    "kl, SquareHead": {**KL, "feature_weight": 1.0},
    "kl, on-policy": {**KL, "on_policy": 0.25},
}
COMMON: dict[str, Any] = {"device": "cpu", "dtype": "float32", "overwrite": False}


def recipe_of(target: str, drafter: str, pattern: str, tokens: int, learning_rate: float) -> Recipe:
    """The recipe whose drafters are the one-shot one and every arm."""
    entries: list[dict[str, Any]] = [{"name": "one-shot", "prune": PATTERNS[pattern]}]
    for name, arm in ARMS.items():
        how = {k: v for k, v in arm.items() if k not in ("data", "gradual")}
        start = {"prune": PATTERNS[pattern], "gradual": GRADUAL[pattern]} if "gradual" in arm else {"start": "one-shot"}
        entries.append({"name": name, **start, "finetune": how})
    return Recipe.model_validate(
        {
            "target": target,
            "drafter": drafter,
            "distill": {"top_k_logprobs": 16},
            "prune": {"tokens": 8192},
            "finetune": {
                "tokens": tokens, "learning_rate": learning_rate, "rows_per_step": 1, "validate_every": 20,
                "save_every": 20, "validation_prompts": 12,
            },
            "drafters": entries,
        }
    )  # fmt: skip


def references(data: Path, tasks: str, out: Path) -> Path:
    """`data` with the reference answers of `tasks` in place of the target's, cut to the longest of these."""
    if (out / "result.json").exists():
        return out
    tokenizer = checkpoint.load_tokenizer(data / "tokenizer")
    written = {p.id: p.references[0] for p in prompts.read(tasks)}
    rows = dataset.read(data)
    longest = max(len(row["answer_ids"]) for row in rows)
    for row in rows:
        text = written[row["prompt_id"]]
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], *end_of_turn(tokenizer)]
        row.update(
            answer_ids=ids[:longest], finish_reason="eos" if len(ids) <= longest else "length", source="reference",
            topk_ids=[], topk_logprobs=[], messages=[*row["messages"][:-1], {"role": "assistant", "content": text}],
        )  # fmt: skip
    tokenizer.save_pretrained(out / "tokenizer")
    write_json(out / "result.json", write(out, rows, lambda row: "", len(rows), 0))
    return out


class Study:
    """The arms of one pair of models: each is made, scored and deleted."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.rows = options, Rows(options.out)
        self.answers = answers_of(options.target, select(options.prompts, options.each), 64, options.out)

    def note(self, label: str, folder: Path, quantized: str = "none", **more: Any) -> None:
        """Score the drafter in `folder`, unless its row is there."""
        if self.rows.lack(label):
            self.rows.add({"label": label, **more, **score(folder, self.answers, quantized)})

    def make(self, recipe: Recipe, name: str, data: Path, folder: Path, start: Path | None = None) -> Path:
        """The drafter `name` of `recipe`, made in `folder`; `start`: the one-shot drafter, if it is there."""
        entry = next(e for e in recipe.drafters if e.name == name)
        # pruning is the same for every arm, so only fine-tuning is in another dtype; 0: the budget is not an epoch
        common = {**COMMON, "dtype": self.options.dtype} if start else COMMON
        return Path(make_drafter(recipe, entry, {"one-shot": str(start)} if start else {}, data, 0, folder, common))

    def arm(self, recipe: Recipe, pattern: str, name: str, start: Path) -> None:
        """Train and score one arm. Its row comes last, so that an arm with a row is complete."""
        options = self.options
        label = f"{pattern}, {name}, {options.tokens} tokens at {options.learning_rate:g}"
        if not self.rows.lack(label):
            return
        data = options.data
        if ARMS[name].get("data") == "references":
            data = references(options.data, options.tasks, options.out / "references")
        work = options.out / label.replace(" ", "_").replace(":", "of")  # an interrupted arm goes on
        began = time.perf_counter()
        drafter = self.make(recipe, name, data, work, start)
        seconds = round(time.perf_counter() - began)
        result = json.loads((drafter / "result.json").read_text())
        if name in ("kl", "kl, int8-aware"):
            self.note(f"{label}, in int8", drafter, "int8")
        training = {key: result[key] for key in ("steps", "val_loss", "val_alpha")}
        self.note(label, drafter, seconds=seconds, **training)
        shutil.rmtree(work)


def main() -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("drafter")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--each", type=int, default=4, help="prompts of each of Spec-Bench's tasks")
    parser.add_argument("--tokens", type=int, default=20_480, help="training tokens of an arm")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--patterns", default="50%,2:4")
    parser.add_argument("--arms", default=";".join(ARMS), help="separated by ;")
    parser.add_argument("--dtype", default="float32", help="of fine-tuning; bfloat16 keeps float32 master weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    setup(options.threads)
    study = Study(options)
    study.note("dense", checkpoint.find(options.drafter))
    for pattern in options.patterns.split(","):
        recipe = recipe_of(options.target, options.drafter, pattern, options.tokens, options.learning_rate)
        start = study.make(recipe, "one-shot", options.data, options.out / f"one-shot-{pattern}")
        study.note(f"{pattern}, one-shot", start)
        study.note(f"{pattern}, one-shot, in int8", start, "int8")
        for name in options.arms.split(";"):
            study.arm(recipe, pattern, name, start)
    return study.rows.rows


if __name__ == "__main__":
    close(main())
