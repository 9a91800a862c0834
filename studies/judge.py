r"""Which drafter is better: MAL of several on the same answers of a target, and their ratios with paired intervals.

    python studies/judge.py TARGET NAME=DRAFTER [NAME=DRAFTER ...] --rows spec_bench_dev.jsonl --out FOLDER

Target and drafters are checkpoints or packed folders. The target answers each question once, greedily, with up to
--max-new-tokens tokens. Each drafter is read over these answers (`eval --simulate`: the greedy loop's own numbers, for
every K at once) and stays in FOLDER: a later call with another drafter costs its own pass, and an interrupted one goes
on. Prompt look-up comes first, as a drafter that needs no model. The intervals (95 %) are of bootstraps over questions,
for ratios with the same questions drawn for both drafters.

--rows FILE, demo:eval, or a folder of distilled data, which stands for its first --validation-prompts: those that
`finetune` holds out. Spec-Bench confirms; what is chosen (K, scales, groups, losses) is chosen on the others.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from curve import sides
from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.base.hashing import file_hash
from sparsedraft.base.places import slug
from sparsedraft.models.names import LOOKUP
from sparsedraft.stages.evaluate.options import EvaluateOptions, named_drafter, parse_k
from sparsedraft.stages.evaluate.stage import evaluate
from sparsedraft.stages.evaluate.summary import is_spec_bench, mal_against
from sparsedraft.stages.report.tables import markdown
from stored import by_drafter, figure
from study import setup


def validation_prompts(data: Path, count: int, out: Path) -> Path:
    """The `count` prompts of the distilled `data` that validate, as a file of prompts in `out`; UserError where it does
    not have so many."""
    if count < 1:
        raise UserError(f"--validation-prompts {count} leaves no question: give as many as `finetune` held out.")
    _, validating = sides(data, count)
    prompts = {row["prompt_id"]: row for row in sorted(validating, key=lambda row: (row["sample"], row["turn"]))}
    if len(prompts) < count:
        raise UserError(
            f"--validation-prompts {count} is more than the {len(prompts)} prompts of {data}: give as many as "
            "`finetune` held out."
        )
    file = out / "validation.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_atomic(file) as temporary:
        lines = ({"id": name, **{k: row[k] for k in ("category", "messages")}} for name, row in prompts.items())
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


class Judge:
    """Evaluations of one target's drafters on the same answers, a folder each in `options.out`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.source = options, options.rows
        if Path(options.rows).is_dir():
            self.source = str(validation_prompts(Path(options.rows), options.validation_prompts, options.out))
        self.results = {LOOKUP: self._evaluate(LOOKUP, LOOKUP)}
        for name, model in options.drafters:
            self.results[name] = self._evaluate(name, model)
        for file in sorted(options.out.glob("*/result.json")):  # drafters of earlier calls, named again or not
            earlier = json.loads(file.read_text(encoding="utf-8"))
            self.results.setdefault(earlier["drafters"][0]["name"], earlier)
        self.rows = {name: by_drafter(self._folder(name))[name] for name in self.results}

    def _folder(self, name: str) -> Path:
        return Path(self.options.out / slug(name))

    def _evaluate(self, name: str, model: str) -> dict[str, Any]:
        """The result of the drafter `model`; look-up's evaluation comes first, and gives its answers to the others."""
        o = self.options
        return evaluate(
            EvaluateOptions(
                target=o.target,
                drafters=((name, model),),
                prompts=self.source,
                answers=None if name == LOOKUP else self._folder(LOOKUP),
                out=self._folder(name),
                simulate=True,
                k=o.k,
                max_new_tokens=o.max_new_tokens,
                limit=o.limit,
                spread=o.limit is not None,
                dtype=o.dtype,
            )
        )

    def used(self) -> dict[str, Any]:
        """Which rows the figures are of."""
        first = self.results[LOOKUP]
        return {
            "rows": self.options.rows,
            "sha256": file_hash(Path(self.source)) if Path(self.source).is_file() else None,
            "for": "confirming" if is_spec_bench(self.rows[LOOKUP]) else "choosing",
            "questions": first["prompts"],
            "answers": first["sequences"],
            "target_tokens": first["target_tokens"],
            "max_new_tokens": self.options.max_new_tokens,
        }

    def row(self, name: str) -> dict[str, Any]:
        """The figures of one drafter."""
        drafter = self.results[name]["drafters"][0]
        by_k = {}
        for k in self.options.k:
            at = drafter["k"][str(k)]
            ratio, interval = mal_against(self.rows[name], self.rows[self.options.baseline], k)
            by_k[str(k)] = {
                **{key: at[key] for key in ("mal", "mal_interval", "improvement_factor")},
                "ratio": ratio,
                "ratio_interval": interval,
            }
        kept = ("name", "path", "alpha", "alpha_interval", "macs_per_token", "c")
        tasks = {task: of["mal"] for task, of in drafter.get("by_task", {}).items()}
        return {**{key: drafter[key] for key in kept}, "k": by_k, "mal_by_task": tasks}


def table(judged: dict[str, Any]) -> str:
    """The rows as Markdown, for people: a MAL and a ratio for each K."""
    used, ks = judged["used"], list(judged["rows"][0]["k"])
    said = f"{used['questions']} questions of {used['rows']} (for {used['for']}), {used['answers']} answers of up to "
    said += f"{used['max_new_tokens']} tokens, {used['target_tokens']} in all; ratios to {judged['baseline']}."
    header = ["drafter", "α", *(title for k in ks for title in (f"MAL, K={k}", "ratio"))]
    rows = []
    for row in judged["rows"]:
        of_k = [(at["mal"], at["mal_interval"], at["ratio"], at["ratio_interval"]) for at in row["k"].values()]
        cells = [cell for mal, width, ratio, span in of_k for cell in (figure(mal, width), figure(ratio, span, 3))]
        rows.append([row["name"], figure(row["alpha"], row["alpha_interval"], 3), *cells])
    return f"{said}\n\n{markdown(header, rows)}"


def numbers(text: str) -> tuple[int, ...]:
    """K's, ascending; UserError where one is no number."""
    numbered = [k for k in parse_k(text) if isinstance(k, int)]
    if len(numbered) < len(parse_k(text)):
        raise UserError(f"--k {text}: a simulation has constant K's only: give numbers.")
    return tuple(sorted(set(numbered)))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("drafters", nargs="+", help="NAME=MODEL; those of earlier calls are in the table, too")
    parser.add_argument("--rows", required=True, help="a file of questions, demo:eval, or a distilled data folder")
    parser.add_argument("--validation-prompts", type=int, default=16, help="of a data folder: as `finetune` had it")
    parser.add_argument("--baseline", help="the drafter that the others are compared with; default: the first")
    parser.add_argument("--k", default="1,2,3,4,5,6,8")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--limit", type=int, help="questions, at equal distances; default: all")
    parser.add_argument("--dtype", default="float32", help="other than float32: by transformers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    setup(options.threads)
    try:
        options.k, options.drafters = numbers(options.k), [named_drafter(text) for text in options.drafters]
        options.baseline = options.baseline or options.drafters[0][0]
        judge = Judge(options)
    except UserError as error:
        parser.error(str(error))
    if options.baseline not in judge.results:
        parser.error(f"--baseline {options.baseline} is no drafter: choose one of {', '.join(judge.results)}.")
    rows = [judge.row(name) for name in judge.results]
    judged = {"target": options.target, "used": judge.used(), "baseline": options.baseline, "rows": rows}
    print(table(judged))
    return judged


if __name__ == "__main__":
    print(json.dumps(main()), flush=True)
