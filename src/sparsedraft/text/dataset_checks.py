"""Checks of a data folder's rows: one that `distill` cannot have written is refused, naming row and field."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparsedraft.base.errors import UserError

MEND = "distill it again"
IDS = ("prompt_ids", "answer_ids", "topk_ids")
LARGEST = 0.1  # a log-probability is at most 0, and some rounding


def check_types(file_schema: pa.Schema, schema: pa.Schema, names: list[str], file: Path) -> None:
    """UserError for a column of `names` that the file lacks, or whose kind of type is not that in `wanted`."""
    for name in names:
        if name not in file_schema.names:
            raise UserError(f"data {file} has no column {name}: {MEND}.")
        here, right = file_schema.field(name).type, schema.field(name).type
        if not _alike(here, right):
            raise UserError(f"data {file}, column {name}: it holds {here}, not {right}; {MEND}.")


def _alike(here: pa.DataType, right: pa.DataType) -> bool:
    """Whether two types are of one kind; the width of numbers and the layout of texts and lists may differ."""
    if pa.types.is_list(right):
        listed = pa.types.is_list(here) or pa.types.is_large_list(here)
        return listed and (pa.types.is_null(here.value_type) or _alike(here.value_type, right.value_type))
    if pa.types.is_struct(right):
        return pa.types.is_struct(here) and all(
            here.get_field_index(field.name) >= 0 and _alike(here.field(field.name).type, field.type) for field in right
        )
    if pa.types.is_string(right):
        return bool(pa.types.is_string(here) or pa.types.is_large_string(here))
    same = (pa.types.is_integer, pa.types.is_floating)
    return any(kind(here) and kind(right) for kind in same)


def check_rows(batch: pa.RecordBatch, file: Path, before: int) -> None:
    """UserError for a row of `batch` with a missing text, an impossible token id, or log-probabilities that are above 0
    or do not match the answer. The batch starts at row `before` of the file.
    """

    def wrong(row: int, field: str, what: str) -> UserError:
        name = f" '{batch['id'][row]}'" if "id" in batch.schema.names else ""
        return UserError(f"data {file}, row {before + row + 1}{name}: {field} {what}; {MEND}.")

    for name in batch.schema.names:
        column = batch[name]
        if column.null_count:
            raise wrong(_first(column.is_null()), name, "is null")
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            values, rows = column.flatten(), pc.list_parent_indices(column)
            parts = (
                [values, *(values.field(i) for i in range(values.type.num_fields))] if name == "messages" else [values]
            )
            for part in parts:
                if part.null_count:
                    raise wrong(rows[_first(part.is_null())].as_py(), name, "has a null in it")
            if name in IDS and len(values) and pc.min(values).as_py() < 0:
                at = _first(pc.less(values, 0))
                raise wrong(rows[at].as_py(), name, f"has the token {values[at]}, and tokens are numbers from 0")
        for empty in ("prompt_ids", "messages"):
            if name == empty and len(batch) and 0 in (lengths := pc.list_value_length(column)).to_pylist():
                raise wrong(_first(pc.equal(lengths, 0)), name, "is empty")
    if {"answer_ids", "topk_ids", "topk_logprobs"} <= set(batch.schema.names):
        _check_soft(batch, wrong)


def _check_soft(batch: pa.RecordBatch, wrong: Callable[[int, str, str], UserError]) -> None:
    answers, ids, logprobs = (
        pc.list_value_length(batch[name]).to_numpy(zero_copy_only=False)
        for name in ("answer_ids", "topk_ids", "topk_logprobs")
    )
    uneven = np.flatnonzero((ids != logprobs) | (ids % np.maximum(answers, 1) != 0) | ((answers == 0) & (ids > 0)))
    if len(uneven):
        row = int(uneven[0])
        raise wrong(
            row,
            "topk_logprobs",
            f"has {logprobs[row]} values for {ids[row]} topk_ids and {answers[row]} answer_ids: not as many for each",
        )
    values = batch["topk_logprobs"].flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    bad = np.flatnonzero(~(values <= LARGEST))  # written so that NaN is bad, too
    if len(bad):
        row = pc.list_parent_indices(batch["topk_logprobs"])[int(bad[0])].as_py()
        raise wrong(row, "topk_logprobs", f"has {values[bad[0]]}, which is no log-probability")


def _first(mask: pa.Array) -> int:
    """The first place that is true."""
    return int(pc.index(mask, True).as_py())
