"""A data folder on disk: parquet shards of conversations that the target answered, read as rows or as samples."""

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from pydantic import BaseModel, ConfigDict, StrictInt
from transformers import PreTrainedTokenizerBase

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError, first_line
from sparsedraft.base.jsonfiles import read_as
from sparsedraft.base.places import read_provenance
from sparsedraft.base.provenance import hash_path
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_of_turn
from sparsedraft.models.tokenizers.reader import read_tokenizer
from sparsedraft.models.tokenizers.templates import Arguments
from sparsedraft.models.tokenizers.vocab import same_tokens
from sparsedraft.text import dataset_checks
from sparsedraft.text.readback import reads_back
from sparsedraft.text.sample import Sample

SOFT = ("topk_ids", "topk_logprobs")
NEEDED = ("id", "prompt_id", "messages", "prompt_ids", "answer_ids", "finish_reason", *SOFT)
PROOF = 512  # rows that are read back to recognise their tokenizer
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
        ("prompt_tokens", pa.int32()),
        ("answer_tokens", pa.int32()),
        ("mode", pa.string()),  # "respond", "rewrite" or "magpie"
        ("source", pa.string()),  # whose words the answer is: "target", "rewritten" or "reference"
        ("note", pa.string()),  # why the reference stayed
        ("engine", pa.string()),
        ("temperature", pa.float64()),
    ]
)


def check(folder: Path) -> Path:
    """`folder`, if it is a finished data folder; else UserError."""
    if not (folder / "result.json").is_file() or not any(folder.glob("data-*.parquet")):
        raise UserError(f"data {folder} is no distilled data folder: make one with 'sparsedraft distill'.")
    return folder


class Result(BaseModel):
    """The fields of a data folder's result.json that are read; more may be there."""

    model_config = ConfigDict(extra="allow")

    rows: StrictInt
    target_tokens: StrictInt = 0
    prompt_tokens: StrictInt = 0
    finish_reasons: dict[str, StrictInt] = {}
    dropped: dict[str, StrictInt] = {}


def read_result(folder: Path) -> dict[str, Any]:
    """The result of the `distill` that wrote `folder`; UserError where it cannot be read."""
    return read_as(check(folder) / "result.json", Result, "distill it again").model_dump(exclude_unset=True)


def read(folder: Path) -> list[dict[str, Any]]:
    """All rows, in order, as Python objects, for small data. UserError as `batches`."""
    return [row for batch in batches(folder) for row in batch.to_pylist()]


def batches(folder: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows a thousand at a time, in order, `columns` of them (default: all).

    UserError where a shard is damaged or of another kind, for a row that `distill` cannot have written (see
    `dataset_checks`), and, after the last row, where a shard is missing.
    """
    expected, count = read_result(folder)["rows"], 0
    for file in sorted(check(folder).glob("data-*.parquet")):
        try:
            shard, before = parquet.ParquetFile(file), 0
            dataset_checks.check_types(shard.schema_arrow, SCHEMA, [*(columns or NEEDED)], file)
            for batch in shard.iter_batches(1024, columns=columns):
                dataset_checks.check_rows(batch.select([*(columns or NEEDED)]), file, before)
                before += len(batch)
                count += len(batch)
                yield batch
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"data {file} cannot be read ({first_line(error)}): distill it again.") from None
    if count != expected:
        raise UserError(f"data {folder} holds {count} rows of the {expected} that were written: distill it again.")


def same_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the data's token ids mean the same under `tokenizer`.

    The data folder holds the target's tokenizer to compare with. Without it (stored results leave it out), PROOF rows
    are read back, under the template arguments that they were written with.
    """
    if not (folder / "tokenizer").exists():
        columns = ["messages", "prompt_ids", "answer_ids"]
        rows = (row for batch in batches(folder, columns) for row in batch.to_pylist())
        return reads_back(islice(rows, PROOF), templates.give(copy.copy(tokenizer), _written_under(folder)))
    stored = read_tokenizer(folder / "tokenizer", f"data {folder}", "distill it again")
    return same_tokens(stored, tokenizer)


def _written_under(folder: Path) -> Arguments:
    """The template arguments under which the target wrote the data in `folder`."""
    inputs = (read_provenance(folder) or {}).get("inputs")
    arguments = inputs.get("template_args") if isinstance(inputs, dict) else None
    return arguments if isinstance(arguments, dict) else {}


def check_teacher(teacher: str, folder: Path, data: Path) -> None:
    """Raise UserError unless `teacher`, which lies in `folder`, is the model that wrote `data`.

    By the hash in the data's provenance; where that names no checkpoint (an endpoint wrote it), by the tokenizer.
    """
    inputs = (read_provenance(data) or {}).get("inputs")
    written_by = inputs.get("target") if isinstance(inputs, dict) else None
    if isinstance(written_by, dict) and "sha256" in written_by:
        if written_by["sha256"] != hash_path(folder):
            raise UserError(
                f"--teacher {teacher} is not the model that wrote {data} ({written_by.get('path')} did): give that "
                "one, or distill again."
            )
    elif not same_tokenizer(data, checkpoint.load_tokenizer(folder)):
        raise UserError(
            f"--teacher {teacher} has another tokenizer than the model that wrote {data}: give that model, or distill "
            "again."
        )


def check_rendered(folder: Path, tokenizer: PreTrainedTokenizerBase, template_args: Arguments) -> None:
    """UserError for template arguments without effect: data with this tokenizer's token ids need no template.

    A line on the console says so where the target wrote the data with arguments, and another tokenizer's template is
    applied without any.
    """
    written_with = _written_under(folder)
    if not template_args and not written_with:
        return
    same = same_tokenizer(folder, tokenizer)
    if same and template_args:
        raise UserError(
            f"--template-arg {next(iter(template_args))}: data {folder} holds the token ids of this tokenizer, no "
            "template is applied to it again; leave it out."
        )
    if written_with and not same and not template_args:
        named = ", ".join(f"{name}={json.dumps(value)}" for name, value in written_with.items())
        console.print(
            f"data {folder} was written under the template arguments {named}, and this model's own template is applied "
            "to it without: give --template-arg where it knows them",
            soft_wrap=True, markup=False,
        )  # fmt: skip


def check_ids(samples: Iterable[Sample], rows: int, name: str) -> None:
    """Raise UserError for a sample with a token that `name`, whose embedding has `rows` rows, does not have."""
    for sample in samples:
        largest = max((*sample.prompt_ids, *sample.answer_ids))
        if largest >= rows:
            raise UserError(
                f"sample {sample.id} of the data holds token {largest}, but the embedding of {name} has {rows} rows: "
                "it is not a model for this tokenizer, choose another."
            )


def samples(folder: Path, tokenizer: PreTrainedTokenizerBase, soft: bool = True) -> Iterator[Sample]:
    """The rows as samples in the ids of `tokenizer`, one after the other; with `soft` the labels that are stored.

    With the target's tokenizer these are the stored ids. With another one the conversation's text is tokenized under
    the drafter's template, without soft labels. UserError as `batches`.
    """
    columns = ["id", "prompt_id"]
    if same_tokenizer(folder, tokenizer):
        for batch in batches(folder, [*columns, "prompt_ids", "answer_ids", *(SOFT if soft else ())]):
            yield from _own_ids(batch, soft)
    else:
        for batch in batches(folder, [*columns, "messages", "finish_reason"]):
            yield from (_again(row, tokenizer) for row in batch.to_pylist())


def _own_ids(batch: pa.RecordBatch, soft: bool) -> Iterator[Sample]:
    """The batch's rows with the stored ids. Soft labels stay arrays, 6 bytes each instead of some 70 as objects."""
    rows = batch.drop_columns([*SOFT] if soft else []).to_pylist()
    for i, row in enumerate(rows):
        sample = Sample(row["id"], row["prompt_ids"], row["answer_ids"], prompt_id=row["prompt_id"])
        if soft:
            n = len(row["answer_ids"])
            ids, logprobs = (batch[name][i].values.to_numpy(zero_copy_only=False) for name in SOFT)
            k = len(ids) // max(1, n)
            sample = replace(sample, topk_ids=ids.reshape(n, k), topk_logprobs=logprobs.reshape(n, k))
        yield sample


def _again(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Sample:
    ids = templates.chat_ids(tokenizer, row["messages"][:-1])
    answer = tokenizer(row["messages"][-1]["content"], add_special_tokens=False)["input_ids"]
    if row["finish_reason"] == "eos":
        answer = [*answer, *end_of_turn(tokenizer)]
    return Sample(row["id"], ids, answer, prompt_id=row["prompt_id"])
