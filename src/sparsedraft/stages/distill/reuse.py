"""Reuse of a finished data folder: its answers are kept when more prompts are added."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from sparsedraft.base.journal import Journal
from sparsedraft.text import dataset
from sparsedraft.text.prompts import Prompt
from sparsedraft.writers.conversation import DAY
from sparsedraft.writers.units import key_of

OR = " or "  # between days
MADE = ("prompt_tokens", "answer_tokens")  # columns that follow from the others


def take_up(finished: Path, journal: Journal, chosen: Sequence[Prompt], samples: int) -> None:
    """Copy the conversations of the `chosen` prompts from the data folder `finished`, if there is one, to `journal`.

    Only conversations with all their answers are copied: a rule may have left some out. The caller makes sure that
    prompts of equal ids are equal, as `artifact.make` does.
    """
    if not (finished / "result.json").is_file():
        return
    by_id = {prompt.id: prompt for prompt in chosen}
    for name, rows in groupby(_rows(finished), key=lambda row: str(row["prompt_id"])):
        prompt, answers = by_id.get(name), list(rows)
        if prompt is not None and len(answers) == len(prompt.turns) * samples:
            journal.append({name: key_of(prompt)}, answers)


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows as the journal had them: without empty optional columns, and with the day of the template.

    No column holds the day of a row; if the folder has several days, each row gets all of them.
    """
    dates = dataset.read_result(folder).get("template_dates", ())
    days = sorted({day for counted in dates for day in counted.split(OR)})
    day = {DAY: OR.join(days)} if days else {}
    for batch in dataset.batches(folder):
        for row in batch.to_pylist():
            yield day | {name: value for name, value in row.items() if name not in MADE and value is not None}
