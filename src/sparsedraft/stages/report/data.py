"""The page on a data folder: what the target wrote, counted, drawn and ten of it to read."""

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sparsedraft.base.hashing import text_hash
from sparsedraft.stages.report import plots
from sparsedraft.text import dataset

SAMPLES = 10
COLUMNS = [
    "id", "category", "source", "note", "finish_reason", "prompt_tokens", "answer_tokens", "messages"
]  # fmt: skip


@dataclass
class DataPage:
    """What the page shows; filled row by row, so that data of any size passes."""

    result: dict[str, Any]
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {k: Counter() for k in ("category", "note")})
    table: Counter[tuple[str, str]] = field(default_factory=Counter)  # rows by (source, finish reason)
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"prompt_tokens": [], "answer_tokens": []})
    samples: list[dict[str, Any]] = field(default_factory=list)


def read_page(folder: Path) -> DataPage:
    """Count the rows of the distilled data in `folder`; the samples are those whose id has the smallest SHA-256.

    UserError where the data is damaged.
    """
    page = DataPage(dataset.read_result(folder))

    def counted() -> Iterator[dict[str, Any]]:
        for batch in dataset.batches(folder, COLUMNS):
            for row in batch.to_pylist():
                for name, counter in page.counts.items():
                    counter[row[name]] += 1
                for name, values in page.lengths.items():
                    values.append(row[name])
                page.table[row["source"], row["finish_reason"]] += 1
                yield row

    page.samples = heapq.nsmallest(SAMPLES, counted(), key=lambda row: text_hash(row["id"]))
    return page


def figures(page: DataPage) -> dict[str, tuple[str, Figure]]:
    """Histograms of the lengths."""
    titles = {"prompt_tokens": "Prompt length", "answer_tokens": "Answer length"}
    return {k: (title, plots.lengths(page.lengths[k], f"{title.lower()}, tokens")) for k, title in titles.items()}


def context(page: DataPage) -> dict[str, Any]:
    """What the templates show."""
    reasons = sorted({reason for _, reason in page.table})
    sources = sorted({source for source, _ in page.table})
    return {
        "result": page.result,
        "header": ["whose words", *reasons],
        "rows": [[source, *(f"{page.table[source, reason]:,}" for reason in reasons)] for source in sources],
        "categories": page.counts["category"].most_common(),
        "notes": [(note, count) for note, count in page.counts["note"].most_common() if note],
        "dropped": list(page.result.get("dropped", {}).items()),
        "samples": page.samples,
    }
