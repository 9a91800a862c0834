"""Writes rows to a data folder: rows that a rule names are left out and counted, the rest go to parquet shards."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.text.dataset import SCHEMA

SHARD = 10_000  # the most rows in a file,
NUMBERS = 4_000_000  # and the most token ids and log-probabilities: as Python objects they take some 36 bytes each


def write(
    folder: Path, rows: Iterable[dict[str, Any]], reason: Callable[[dict[str, Any]], str], asked: int, k: int
) -> dict[str, Any]:
    """Write `rows` (keys as in SCHEMA) as parquet shards, one in memory at a time; return what `distill` reports.

    A row with a "dropped" field, or for which `reason` gives a reason, is counted but not written. `asked` is the
    number of prompts, `k` that of the likeliest tokens stored. Raises UserError if no row is left.
    """
    total, counts, digest = _Counts(), Counter[str](), hashlib.sha256()

    def kept() -> Iterator[dict[str, Any]]:
        for row in rows:
            if why := row.get("dropped") or reason(row):
                counts[why] += 1
            else:
                total.add(row)
                yield row

    number = 0
    for number, shard in enumerate(_shards(kept()), 1):
        plain = [
            {
                **row,
                "topk_logprobs": np.asarray(row["topk_logprobs"], np.float16),
                "prompt_tokens": len(row["prompt_ids"]),
                "answer_tokens": len(row["answer_ids"]),
            }
            for row in shard
        ]
        with write_atomic(folder / f"data-{number - 1:05}.parquet") as temporary:
            parquet.write_table(pa.Table.from_pylist(plain, schema=SCHEMA), temporary, compression="zstd")
            digest.update(temporary.read_bytes())
    if not number:
        reasons = ", ".join(f"{why} {count}" for why, count in counts.most_common())
        raise UserError(f"not one row is left to write (left out: {reasons}): give more prompts, or milder rules.")
    return total.result() | {
        "prompts": asked,
        "topk": k,
        "dropped": dict(counts.most_common()),
        "data_sha256": digest.hexdigest(),
    }


def _shards(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    shard: list[dict[str, Any]] = []
    numbers = 0
    for row in rows:
        shard.append(row)
        numbers += sum(len(row[name]) for name in ("prompt_ids", "answer_ids", "topk_ids", "topk_logprobs"))
        if len(shard) == SHARD or numbers >= NUMBERS:
            yield shard
            shard, numbers = [], 0
    if shard:
        yield shard


class _Counts:
    """Sums over rows."""

    def __init__(self) -> None:
        self.rows = self.target_tokens = self.prompt_tokens = self.soft = 0
        self.reasons, self.sources = Counter[str](eos=0, length=0), Counter[str]()
        self.days = Counter[str]()  # that a server's template told the model

    def add(self, row: dict[str, Any]) -> None:
        """One more row."""
        self.rows += 1
        self.target_tokens += len(row["answer_ids"])
        self.prompt_tokens += len(row["prompt_ids"])
        self.soft += bool(row["topk_ids"])
        self.reasons[row["finish_reason"]] += 1
        self.sources[row["source"]] += 1
        if day := row.get("template_date"):
            self.days[day] += 1

    def result(self) -> dict[str, Any]:
        """The counts by name."""
        return {
            "rows": self.rows,
            "target_tokens": self.target_tokens,
            "prompt_tokens": self.prompt_tokens,
            "finish_reasons": dict(self.reasons),
            "sources": dict(self.sources),
            "rows_with_topk": self.soft,
            **({"template_dates": dict(sorted(self.days.items()))} if self.days else {}),  # rows by day
        }
