"""A finished data folder whose prompts have become more: what it holds is not asked for again."""

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
    """Put into `journal` what the data folder `finished`, if there is one, holds of the `chosen` prompts.

    Taken are conversations of which every answer is there; a rule may have left out others of it. The caller sees to it
    that a prompt of the same id is the same prompt, as `artifact.make` does.
    """
    if not (finished / "result.json").is_file():
        return
    by_id = {prompt.id: prompt for prompt in chosen}
    for name, rows in groupby(_rows(finished), key=lambda row: str(row["prompt_id"])):
        prompt, held = by_id.get(name), list(rows)
        if prompt is not None and len(held) == len(prompt.turns) * samples:
            journal.append({name: key_of(prompt)}, held)


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    """As they were in the journal: without what an optional column lacks, and with the day that they are of, or all
    days of the folder where it has several, since no column says whose is which."""
    found = dataset.read_result(folder).get("template_dates", ())
    days = sorted({day for counted in found for day in counted.split(OR)})
    day = {DAY: OR.join(days)} if days else {}
    for batch in dataset.batches(folder):
        for row in batch.to_pylist():
            yield day | {name: value for name, value in row.items() if name not in MADE and value is not None}
