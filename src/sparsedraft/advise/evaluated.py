"""Acceptance of the drafters on what the target writes for the user's prompts: `eval`'s own, for all K's at once."""

from collections.abc import Sequence
from pathlib import Path

from sparsedraft.advise.options import AdviseOptions
from sparsedraft.base.journal import read_lines
from sparsedraft.stages.evaluate.bootstrap import Row
from sparsedraft.stages.evaluate.options import EvaluateOptions
from sparsedraft.stages.evaluate.stage import evaluate
from sparsedraft.writers.conversation import Answer

KS = (1, 2, 3, 4, 5, 6, 8)
SHARED = (
    "target", "prompts", "limit", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
    "template_args", "seed", "device", "dtype", "runtime", "cache", "overwrite",
)  # fmt: skip


def evaluated(
    options: AdviseOptions, out: Path, drafters: Sequence[str], window: int | None = None, answers: Path | None = None
) -> dict[str, list[Row]]:
    """The rows of each drafter, with a histogram of each of KS. `answers`: an evaluation whose answers are taken.

    An interrupted one goes on, a finished one is read.
    """
    of_window = {"drafter_window": window} if window else {}
    chosen = EvaluateOptions(
        drafters=[(name, name) for name in drafters], out=out, answers=answers, simulate=True, spread=True, k=KS,
        **{name: getattr(options, name) for name in SHARED}, **of_window,
    )  # fmt: skip
    evaluate(chosen)
    rows = read_lines(out / "rows.jsonl", ("drafter", "id"))
    return {name: [row for row in rows if row["drafter"] == name] for name in drafters}


def answers_of(out: Path) -> list[Answer]:
    """The target's answers in the evaluation `out`, without those that were left out."""
    rows = [row for line in read_lines(out / "answers.jsonl", ("rows",)) for row in line["rows"]]
    known = Answer.__dataclass_fields__
    answers = [Answer(**{name: value for name, value in row.items() if name in known}) for row in rows]
    return [answer for answer in answers if not answer.dropped]
