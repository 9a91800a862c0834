"""vLLM on this CPU with our packed drafter, beside vLLM with dense drafters and without one, in the same minutes.

    make .venv-vllm/.installed && .venv-vllm/bin/pip install dist/*.whl   # an environment with vLLM and sparsedraft
    python benchmarks/inside_vllm.py --vllm .venv-vllm/bin/python [--drafted 3] [--limit 8] [--turns 3]

Every way is a server of its own, one after the other, in so many turns; each row compares medians over these turns.
The target runs in bfloat16. How long it takes was not measured yet. (It is not called vllm.py, since Python would
then take it for the package.)
"""

import argparse
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import groups
from common import CACHE, measured, parser
from fourbit_models import Models, add_options
from record import Table
from sparsedraft.models import checkpoint
from vllm_servers import Vllm, drafting, proposing, serving
from whole_answers import Task, leaving_out

AT_ONCE = 4
ALONE, BF16, PACKED, OWN = "alone", "dense bf16", "packed", "our engine's drafts"


class DraftersOfVllm(Models):
    """The drafters that vLLM runs by itself, and ours."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.target = str(checkpoint.find(self.target))

    def compressed(self, weights: str) -> Path:
        """The dense drafter, as vLLM reads int8 and int4."""
        out = self.folder / f"compressed-{weights}"
        measured("pack", self.drafter, "--out", out, "--weights", weights, "--format", "compressed-tensors")
        return out

    @property
    def best_packed(self) -> Path:
        """The packed drafter: the trained one, else the pruned one."""
        return self.packed_drafter(self.tuned, "fine-tuned") if self.tuned else self.one_shot


class Bench(groups.Bench):
    """One run: its options, the models as they are first needed, and the rows."""

    name = "inside_vllm"
    makes = DraftersOfVllm

    def __init__(self, options: argparse.Namespace, table: Table, ends: ExitStack) -> None:
        super().__init__(options, table, ends)
        self.turns = 1 if options.quick else options.turns

    @cached_property
    def ways(self) -> dict[str, list[str]]:
        """The servers' arguments by what they are."""
        k, models = self.options.drafted, self.models
        assert isinstance(models, DraftersOfVllm)
        return {
            ALONE: [],
            BF16: drafting(checkpoint.find(models.drafter), k),
            "dense int8": drafting(models.compressed("int8"), k),
            "dense int4": drafting(models.compressed("int4"), k),
            PACKED: drafting(models.best_packed, k),
            OWN: proposing(models.best_packed, k),
        }


def answers(bench: Bench) -> None:
    """Tokens a second of every way, one request at a time and several at once."""
    count, tokens = (2, 12) if bench.options.quick else (bench.options.limit, 128)
    task = Task.of(bench.options.prompts, count, tokens, checkpoint.load_tokenizer(bench.models.target))
    log = CACHE / bench.name / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for turn in range(bench.turns):
        for name, arguments in bench.ways.items():
            model = ["--model", bench.models.target, *arguments]
            with leaving_out(name), serving(bench.options.vllm, bench.threads, log, model) as vllm:
                rows.append({"turn": turn, "way": name, **timed(vllm, task, tokens)})
            bench.keep("answers-turns", rows)
    compare(bench, medians(rows))


def timed(vllm: Vllm, task: Task, tokens: int) -> dict[str, Any]:
    """Tokens a second of one server, and what was drafted where requests came one at a time."""
    vllm.answer(task.choosing[0], 8)  # the first request takes longer than others
    each = [vllm.answer(ids, tokens) for ids in task.measured]
    many = vllm.together(task.measured, tokens, AT_ONCE)
    drafts = {kind: sum(getattr(answer, kind) for answer in each) for kind in ("drafted", "accepted")}
    one = sum(answer.tokens for answer in each) / sum(answer.seconds for answer in each)
    return {"one": one, "many": many.tokens / many.seconds, **drafts}


def medians(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Tokens a second by way, one at a time and several at once."""
    ways = dict.fromkeys(row["way"] for row in rows)
    return {
        way: {key: statistics.median(row[key] for row in rows if row["way"] == way) for key in ("one", "many")}
        for way in ways
    }


def compare(bench: Bench, speed: Mapping[str, Mapping[str, float]]) -> None:
    """The rows."""
    for way, found in speed.items():
        bench.table.note(f"{way}, tokens/s", found["one"], at_once=round(found["many"], 2))
    packed, dense = speed.get(PACKED), {way: found for way, found in speed.items() if way.startswith("dense")}
    if packed is None or ALONE not in speed or BF16 not in speed:
        return
    bench.table.ratio("packed drafter / dense bf16", packed["one"] / dense[BF16]["one"], 1.2)
    best = max(dense, key=lambda way: dense[way]["one"])
    bench.table.ratio("packed drafter / best dense", packed["one"] / dense[best]["one"], 1.05, best=best)
    bench.table.ratio("packed drafter / alone", packed["one"] / speed[ALONE]["one"], 1.25)
    bench.table.ratio(f"packed drafter / alone, {AT_ONCE} at once", packed["many"] / speed[ALONE]["many"], 1.0)


GROUPS: groups.Groups = {"answers": answers}


def main() -> None:
    arguments = parser(__doc__)
    add_options(arguments)
    arguments.add_argument("--vllm", type=Path, required=True, help="the Python of an environment with vLLM and us")
    arguments.add_argument("--drafted", type=int, default=3, help="tokens drafted a step")
    arguments.add_argument("--prompts", default="demo:eval", help="PROMPTS to answer")
    arguments.add_argument("--limit", type=int, default=8, help="how many of them")
    arguments.add_argument("--turns", type=int, default=3, help="how often each server is started; a quick check: once")
    groups.add_only(arguments, GROUPS)
    groups.main(Bench, GROUPS, arguments)


if __name__ == "__main__":
    main()
