"""MAL against what it took: one drafter of a finished run fine-tuned on fewer and more tokens, and on less data.

    python studies/curve.py RUN --drafter sd2-50 --tokens 37500,75000 --data-tokens 20000,40000:80000 --out FOLDER

--tokens: budgets of fine-tuning on the run's whole data; --data-tokens: target tokens of a part of the data, without
the prompts that validate, for the recipe's own budget or for one given behind a colon. Each row is scored by simulation
on the recipe's evaluation prompts and stays in FOLDER/rows.jsonl, so that an interrupted command goes on. Validation is
on the same held-out prompts in all rows.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from scoring import KS, score
from sparsedraft.base.hashing import stable_order
from sparsedraft.base.journal import read_lines
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers.vocab import same_tokens
from sparsedraft.recipe import reading as recipes
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.recipe.sections import Drafter
from sparsedraft.run import make_drafter
from sparsedraft.stages.distill.datafolder import write
from sparsedraft.stages.evaluate.evaluation import ANSWERS
from sparsedraft.stages.report.tables import markdown
from sparsedraft.text import dataset
from sparsedraft.writers.conversation import Answer
from study import Rows, close, setup

VERSION = 2  # of the rows: their data's tokens are those of training


def answers_of(recipe: Recipe, run: Path) -> list[Answer]:
    """The target's answers to the recipe's evaluation prompts, as its evaluation has them."""
    kept = run / "eval" / ANSWERS
    if not kept.is_file():
        sys.exit(f"{kept} is missing: the run's evaluation must be finished, by a version that keeps the answers.")
    how = recipe.eval
    if (how.temperature, how.repetition_penalty) != (0, 1):
        sys.exit("The recipe's evaluation samples, and the curve is of greedy decoding: set eval.temperature to 0.")
    answers = {row["id"]: Answer(**row) for unit in read_lines(kept) for row in unit["rows"]}
    return [answers[name] for name in sorted(answers) if not answers[name].dropped]


def sides(data: Path, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training, validation): the rows of `data`, whose `count` prompts of the smallest SHA-256 validate."""
    rows = dataset.read(data)
    ids = stable_order({row["prompt_id"] for row in rows}, str)
    validating = set(ids[:count])
    validation = [row for row in rows if row["prompt_id"] in validating]
    texts = {tuple(row["prompt_ids"]) for row in validation}  # under another id they neither train nor validate
    training = [row for row in rows if row["prompt_id"] not in validating and tuple(row["prompt_ids"]) not in texts]
    return training, validation


def part_of(data: Path, tokens: int, count: int, out: Path) -> Path:
    """The first rows of `data` that hold so many target tokens, and those that validate."""
    if (out / "result.json").exists():
        return out
    training, validation = sides(data, count)
    sums = itertools.accumulate((len(row["answer_ids"]) for row in training), initial=0)
    rows = [*(row for row, before in zip(training, sums, strict=False) if before < tokens), *validation]
    checkpoint.load_tokenizer(data / "tokenizer").save_pretrained(out / "tokenizer")
    write_json(out / "result.json", write(out, rows, lambda row: "", len(rows), 0))
    return out


def target_tokens(data: Path, count: int) -> int:
    """What there is to train on: without the prompts that validate."""
    return sum(len(row["answer_ids"]) for row in sides(data, count)[0])


def parts_and_budgets(text: str) -> list[tuple[int, int | None]]:
    """(target tokens of the data, training tokens if given) of each "tokens" or "tokens:budget". ValueError."""
    pairs = [tuple(map(positive, part.split(":"))) for part in filter(None, text.split(","))]
    if any(len(part) > 2 for part in pairs):
        raise ValueError
    return [(part[0], part[1] if len(part) > 1 else None) for part in pairs]


def positive(number: str) -> int:
    if (value := int(number)) < 1:
        raise ValueError
    return value


def entries(recipe: Recipe, name: str) -> tuple[Drafter, Drafter]:
    """The drafter of that name, and the one that it starts from."""
    by_name = {entry.name: entry for entry in recipe.drafters}
    entry = by_name.get(name)
    if entry is None or not entry.start or not entry.trained or entry.prune or entry.drop_layers:
        fit = [e.name for e in recipe.drafters if e.start and e.trained and not (e.prune or e.drop_layers)]
        sys.exit(f"--drafter {name}: choose one that only fine-tunes another: {', '.join(fit) or 'none here'}.")
    if not same_tokens(*(checkpoint.load_tokenizer(ref) for ref in (recipe.target, recipe.dense))):
        sys.exit("This run's drafters have another tokenizer than its target: evaluate them with sparsedraft eval.")
    return entry, by_name[entry.start]


def check_same(run: Path, recipe: Recipe, drafter: str, out: Path) -> None:
    """End here if `out` holds rows of another run, recipe or drafter."""
    data = json.loads((run / "distilled/provenance.json").read_text(encoding="utf-8"))["fingerprint"]
    source = {"data": data, "drafter": drafter, "recipe": recipe.model_dump(mode="json"), "version": VERSION}
    if (out / "of.json").exists() and json.loads((out / "of.json").read_text(encoding="utf-8")) != source:
        sys.exit(f"--out {out} holds the curve of another run, recipe or drafter: name a new folder.")
    write_json(out / "of.json", source)


class Curve:
    """One drafter of a run, made again on other budgets and parts of the data."""

    def __init__(self, run: Path, drafter: str, out: Path) -> None:
        self.run, self.out, self.recipe = run, out, recipes.read(run / "recipe.yaml")
        self.entry, self.start = entries(self.recipe, drafter)
        self.how = self.recipe.finetune_of(self.entry)
        self.rows = Rows(out)
        check_same(run, self.recipe, self.entry.name, out)
        self.answers = answers_of(self.recipe, run)

    def note(self, label: str, folder: Path, **more: Any) -> None:
        """Score the drafter in `folder`, unless its row is there."""
        if not self.rows.lack(label):
            return
        result = json.loads((folder / "result.json").read_text()) if (folder / "result.json").is_file() else {}
        training = {k: result[k] for k in ("tokens", "val_loss", "val_alpha") if k in result}
        scored = score(folder, self.answers, dtype=self.recipe.eval.dtype or self.recipe.dtype)
        self.rows.add({"label": label, **more, **training, **scored})

    def ends(self) -> None:
        """Rows of the dense drafter, of the one before fine-tuning, and of the run's own."""
        drafters = self.run / "drafters"
        self.note("dense", checkpoint.find(self.recipe.dense))
        self.note(self.start.name, drafters / self.start.slug / self.start.stages[-1])
        tokens = target_tokens(self.run / "distilled", self.how.validation_prompts)
        self.note(self.entry.name, drafters / self.entry.slug / "finetuned", data=tokens)

    def arm(self, label: str, data: Path, budget: int) -> None:
        """The drafter fine-tuned on `budget` tokens of `data`, scored."""
        if not self.rows.lack(label):
            return
        finetune = self.entry.finetune if isinstance(self.entry.finetune, dict) else {}
        entry = self.entry.model_copy(update={"finetune": {**finetune, "tokens": budget}})
        start = self.run / "drafters" / self.start.slug / self.start.stages[-1]
        common = {"device": self.recipe.device, "dtype": self.recipe.dtype, "overwrite": False}
        folder = self.out / label.replace(",", "").replace(" ", "-")
        began = time.perf_counter()
        drafter = make_drafter(self.recipe, entry, {self.start.name: str(start)}, data, budget, folder, common)
        seconds = round(time.perf_counter() - began)
        self.note(label, Path(drafter), data=target_tokens(data, self.how.validation_prompts), seconds=seconds)

    def part(self, tokens: int, budget: int | None) -> None:
        """The drafter fine-tuned on the first `tokens` target tokens of the data, for `budget` or the recipe's own."""
        whole = dataset.read_result(self.run / "distilled")
        epoch = whole["prompt_tokens"] + whole["target_tokens"]
        data = part_of(self.run / "distilled", tokens, self.how.validation_prompts, self.out / f"data-{tokens}")
        label = f"{self.entry.name} {tokens} of the data" + (f", {budget} tokens" if budget else "")
        self.arm(label, data, budget or self.how.tokens or epoch)


def table(rows: list[dict[str, Any]]) -> str:
    """The curve as Markdown."""
    header = ["drafter", "training tokens", "data's target tokens", "loss, validation", "α, validation", "α"]
    header += [f"MAL, K={k}" for k in KS]
    cells = [
        [
            r["label"], f"{r.get('tokens', 0):,}", f"{r.get('data', 0):,}",
            *(f"{r[k][-1]:.3f}" if k in r else "" for k in ("val_loss", "val_alpha")), f"{r['alpha']:.3f}",
            *(f"{r[f'mal_{k}']:.2f}" for k in KS),
        ]
        for r in rows
    ]  # fmt: skip
    return markdown(header, cells)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--drafter", default="sd2-50")
    parser.add_argument("--tokens", type=parts_and_budgets, default=[], help="comma-separated")
    parser.add_argument("--data-tokens", type=parts_and_budgets, default=[], help="comma-separated, or tokens:budget")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    if not options.tokens and not options.data_tokens:
        parser.error("give --tokens or --data-tokens: the budgets of the curve")
    setup(options.threads)
    curve = Curve(options.run, options.drafter, options.out)
    curve.ends()
    for budget, _ in options.tokens:
        curve.arm(f"{curve.entry.name} {budget} tokens", options.run / "distilled", budget)
    for tokens, budget in options.data_tokens:
        curve.part(tokens, budget)
    print(table(curve.rows.rows))
    return curve.rows.rows


if __name__ == "__main__":
    close(main())
