"""Distilled data on disk: parquet shards of conversations that the target answered, and how to train on them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sparsedraft import prompts
from sparsedraft.artifact import write_atomic
from sparsedraft.errors import UserError
from sparsedraft.packing import Sample

SHARD = 10_000  # rows in a file
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # "<prompt id>/<turn>", and "#<sample>" where a prompt was answered several times
        ("prompt_id", pa.string()),
        ("category", pa.string()),
        ("turn", pa.int32()),
        ("sample", pa.int32()),
        ("messages", pa.list_(MESSAGE)),  # the answer is the last
        ("prompt_ids", pa.list_(pa.int32())),  # chat template with the generation prompt
        ("answer_ids", pa.list_(pa.int32())),  # with the end-of-turn token, if the target ended itself
        ("finish_reason", pa.string()),  # "eos" or "length"
        ("seed", pa.int64()),
        ("topk_ids", pa.list_(pa.int32())),  # k for each answer token, flattened; empty if not asked for
        ("topk_logprobs", pa.list_(pa.float16())),
        ("mode", pa.string()),
        ("engine", pa.string()),
        ("temperature", pa.float64()),
    ]
)


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write `rows` (keys as in SCHEMA) as parquet shards; return the SHA-256 of their contents."""
    total = hashlib.sha256()
    for number, start in enumerate(range(0, len(rows), SHARD)):
        plain = [
            dict(row, topk_logprobs=np.asarray(row["topk_logprobs"], np.float16)) for row in rows[start : start + SHARD]
        ]
        with write_atomic(folder / f"data-{number:05}.parquet") as temporary:
            parquet.write_table(pa.Table.from_pylist(plain, schema=SCHEMA), temporary, compression="zstd")
            total.update(temporary.read_bytes())
    return total.hexdigest()


def check(folder: Path) -> Path:
    """`folder`, if it is a finished distilled data folder; else UserError."""
    if not (folder / "result.json").is_file() or not any(folder.glob("data-*.parquet")):
        raise UserError(f"data {folder} is no distilled data folder: make one with 'sparsedraft distill'.")
    return folder


def read(folder: Path) -> list[dict[str, Any]]:
    """All rows, in order; UserError where a shard is damaged."""
    rows: list[dict[str, Any]] = []
    for file in sorted(check(folder).glob("data-*.parquet")):
        try:
            rows += parquet.read_table(file).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"data {file} cannot be read ({str(error).splitlines()[0]}): distill it again.") from None
    return rows


def same_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the data's token ids mean the same under `tokenizer` (the data folder holds the target's own)."""
    try:
        own = AutoTokenizer.from_pretrained(folder / "tokenizer")
    except (OSError, ValueError) as error:
        raise UserError(
            f"data {folder} has no tokenizer that can be read ({str(error).splitlines()[0]}): distill it again."
        ) from None
    return own.get_vocab() == tokenizer.get_vocab()


@dataclass(frozen=True)
class Sourced(Sample):
    """A sample, and the prompt it came from."""

    prompt_id: str = ""


def samples(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[Sourced]:
    """The rows as samples in the ids of `tokenizer`.

    The target's own ids where the tokenizer is the same; else the text of the conversation, tokenized again under the
    drafter's template, without soft labels.
    """
    rows = read(folder)
    if same_tokenizer(folder, tokenizer):
        return [_own_ids(row) for row in rows]
    return [_again(row, tokenizer) for row in rows]


def _own_ids(row: dict[str, Any]) -> Sourced:
    n = len(row["answer_ids"])
    ids = np.asarray(row["topk_ids"], np.int32).reshape(n, -1)
    logprobs = np.asarray(row["topk_logprobs"], np.float32).reshape(n, -1)
    return Sourced(row["id"], row["prompt_ids"], row["answer_ids"], ids, logprobs, row["prompt_id"])


def _again(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Sourced:
    ids = prompts.chat_ids(tokenizer, row["messages"][:-1])
    answer = tokenizer(row["messages"][-1]["content"], add_special_tokens=False)["input_ids"]
    if row["finish_reason"] == "eos" and tokenizer.eos_token_id is not None:
        answer = [*answer, tokenizer.eos_token_id]
    return Sourced(row["id"], ids, answer, prompt_id=row["prompt_id"])


def summary(rows: Sequence[dict[str, Any]], k: int, digest: str) -> dict[str, Any]:
    """The counts that `distill` reports."""
    reasons = {name: sum(row["finish_reason"] == name for row in rows) for name in ("eos", "length")}
    return {
        "rows": len(rows),
        "target_tokens": sum(len(row["answer_ids"]) for row in rows),
        "prompt_tokens": sum(len(row["prompt_ids"]) for row in rows),
        "finish_reasons": reasons,
        "topk": k,
        "data_sha256": digest,
    }
