"""Distilled data on disk: parquet shards of conversations that the target answered, and how to train on them."""

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
PROOF = 512  # rows that are read back under a tokenizer that may be theirs
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
    """`folder`, if it is a finished distilled data folder; else UserError."""
    if not (folder / "result.json").is_file() or not any(folder.glob("data-*.parquet")):
        raise UserError(f"data {folder} is no distilled data folder: make one with 'sparsedraft distill'.")
    return folder


class Result(BaseModel):
    """What is read of a data folder's result.json; more may be there."""

    model_config = ConfigDict(extra="allow")

    rows: StrictInt
    target_tokens: StrictInt = 0
    prompt_tokens: StrictInt = 0
    finish_reasons: dict[str, StrictInt] = {}
    dropped: dict[str, StrictInt] = {}


def read_result(folder: Path) -> dict[str, Any]:
    """What `distill` reported of the data in `folder`; UserError where that cannot be read."""
    return read_as(check(folder) / "result.json", Result, "distill it again").model_dump(exclude_unset=True)


def read(folder: Path) -> list[dict[str, Any]]:
    """All rows, in order, as Python's objects: for small data. UserError as `batches`."""
    return [row for batch in batches(folder) for row in batch.to_pylist()]


def batches(folder: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows a thousand at a time, in order, `columns` of them (default: all).

    UserError where a shard is damaged, of another kind, or lacking (which is known at the end), and for a row that is
    not what `distill` writes (see `dataset_checks`).
    """
    wanted, count = read_result(folder)["rows"], 0
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
    if count != wanted:
        raise UserError(f"data {folder} holds {count} rows of the {wanted} that were written: distill it again.")


def same_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the data's token ids mean the same under `tokenizer`.

    The data folder holds the target's own; where it was left out (stored results are without it), PROOF rows tell,
    under the template's arguments that they were written with.
    """
    if not (folder / "tokenizer").exists():
        named = ["messages", "prompt_ids", "answer_ids"]
        rows = (row for batch in batches(folder, named) for row in batch.to_pylist())
        return reads_back(islice(rows, PROOF), templates.give(copy.copy(tokenizer), _written_under(folder)))
    own = read_tokenizer(folder / "tokenizer", f"data {folder}", "distill it again")
    return same_tokens(own, tokenizer)


def _written_under(folder: Path) -> Arguments:
    """The arguments of the target's template under which the data in `folder` were written."""
    noted = (read_provenance(folder) or {}).get("inputs")
    found = noted.get("template_args") if isinstance(noted, dict) else None
    return found if isinstance(found, dict) else {}


def check_rendered(folder: Path, tokenizer: PreTrainedTokenizerBase, template_args: Arguments) -> None:
    """UserError for arguments of a template that is not applied: the data's token ids are this tokenizer's own.

    Where the target wrote the data with arguments, and another tokenizer's template is to be applied without, it is
    said on the console.
    """
    theirs = _written_under(folder)
    if not template_args and not theirs:
        return
    same = same_tokenizer(folder, tokenizer)
    if same and template_args:
        raise UserError(
            f"--template-arg {next(iter(template_args))}: data {folder} holds the token ids of this tokenizer, no "
            "template is applied to it again; leave it out."
        )
    if theirs and not same and not template_args:
        given = ", ".join(f"{name}={json.dumps(value)}" for name, value in theirs.items())
        console.print(
            f"data {folder} was written under the template arguments {given}, and this model's own template is applied "
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

    The target's own ids where the tokenizer is the same; else the text of the conversation, tokenized again under the
    drafter's template, without soft labels. UserError as `batches`.
    """
    named = ["id", "prompt_id"]
    if same_tokenizer(folder, tokenizer):
        for batch in batches(folder, [*named, "prompt_ids", "answer_ids", *(SOFT if soft else ())]):
            yield from _own_ids(batch, soft)
    else:
        for batch in batches(folder, [*named, "messages", "finish_reason"]):
            yield from (_again(row, tokenizer) for row in batch.to_pylist())


def _own_ids(batch: pa.RecordBatch, soft: bool) -> Iterator[Sample]:
    """The soft labels stay what the file has, 6 bytes a label: as two of Python's objects they would be some 70."""
    rows = batch.drop_columns([*SOFT] if soft else []).to_pylist()
    for i, row in enumerate(rows):
        found = Sample(row["id"], row["prompt_ids"], row["answer_ids"], prompt_id=row["prompt_id"])
        if soft:
            n = len(row["answer_ids"])
            ids, logprobs = (batch[name][i].values.to_numpy(zero_copy_only=False) for name in SOFT)
            k = len(ids) // max(1, n)
            found = replace(found, topk_ids=ids.reshape(n, k), topk_logprobs=logprobs.reshape(n, k))
        yield found


def _again(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Sample:
    ids = templates.chat_ids(tokenizer, row["messages"][:-1])
    answer = tokenizer(row["messages"][-1]["content"], add_special_tokens=False)["input_ids"]
    if row["finish_reason"] == "eos":
        answer = [*answer, *end_of_turn(tokenizer)]
    return Sample(row["id"], ids, answer, prompt_id=row["prompt_id"])
