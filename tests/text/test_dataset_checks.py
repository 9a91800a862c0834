"""Damaged rows of distilled data: named by row and field, in one sentence, by every command that reads them."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from sparsedraft import cli
from sparsedraft.text import dataset
from stages import distill

AT = 3  # the row that is damaged


@pytest.fixture(scope="module")
def data(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows") / "data"
    distill(str(tiny_checkpoint), "demo:train", folder, limit=8, max_new_tokens=4, top_k_logprobs=2)
    return folder


def damaged(data: Path, out: Path, change: Callable[[dict[str, Any]], object], **types: pa.DataType) -> str:
    """A copy whose row AT is changed; the row's id."""
    shutil.copytree(data, out)
    (file,) = out.glob("data-*.parquet")
    with parquet.ParquetFile(file) as old:
        table = old.read()
    rows = table.to_pylist()
    change(rows[AT])
    schema = pa.schema([pa.field(field.name, types.get(field.name, field.type)) for field in table.schema])
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), file)
    return rows[AT]["id"]


def put(field: str, at: int, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda row: row[field].__setitem__(at, value)


FINETUNE, PRUNE = ("finetune", "--loss", "kl"), ("prune", "--tokens", "200", "--sequence-length", "32")
CUT, PACK = ("drop-layers", "--layers", "1", "--tokens", "200"), ("pack", "--head-tokens", "100")
REPORT = ("report",)
DAMAGE = {
    "a negative token": (put("answer_ids", 1, -7), "answer_ids has the token -7", (FINETUNE, PRUNE, CUT, PACK)),
    "a negative token of a prompt": (put("prompt_ids", 0, -7), "prompt_ids has the token -7", (FINETUNE, PRUNE)),
    "a negative likely token": (put("topk_ids", 1, -7), "topk_ids has the token -7", (FINETUNE,)),
    "a null": (put("answer_ids", 1, None), "answer_ids has a null in it", (FINETUNE, PRUNE, CUT, PACK)),
    "a null for a log-probability": (put("topk_logprobs", 1, None), "topk_logprobs has a null in it", (FINETUNE,)),
    "no prompt": (lambda row: row.update(prompt_ids=[]), "prompt_ids is empty", (FINETUNE, PRUNE)),
    "no list": (lambda row: row.update(answer_ids=None), "answer_ids is null", (FINETUNE, PRUNE, PACK)),
    "uneven": (lambda row: row["topk_logprobs"].pop(), "topk_logprobs has", (FINETUNE,)),
    "uneven, both": (
        lambda row: (row["topk_logprobs"].pop(), row["topk_ids"].pop()), "not as many for each", (FINETUNE,),
    ),
    "not a number": (put("topk_logprobs", 0, float("nan")), "topk_logprobs has nan", (FINETUNE,)),
    "a probability": (put("topk_logprobs", 0, 0.9), "which is no log-probability", (FINETUNE,)),
    "a message without words": (
        lambda row: row["messages"][0].update(content=None), "messages has a null in it", (REPORT,),
    ),
    "no messages": (lambda row: row.update(messages=[]), "messages is empty", (REPORT,)),
    "a count that is null": (lambda row: row.update(answer_tokens=None), "answer_tokens is null", (REPORT,)),
}  # fmt: skip


@pytest.fixture
def refused(monkeypatch, capsys, tiny_checkpoint: Path, tmp_path: Path):
    """What a command says when it refuses the data in `folder`."""

    def call(words: tuple[str, ...], folder: Path) -> str:
        name, *options = words
        given = {
            "finetune": [tiny_checkpoint, folder, "--validation-prompts", 2],
            "prune": [tiny_checkpoint, "--calibration", folder],
            "drop-layers": [tiny_checkpoint, "--calibration", folder],
            "pack": [tiny_checkpoint, "--head-data", folder],
            "report": [folder],
        }[name]
        out = [] if name == "report" else ["--out", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["sparsedraft", *map(str, [name, *given, *options, *out])])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = " ".join(capsys.readouterr().err.split())
        assert left.value.code == 2 and said.count("error: ") == 1 and "Traceback" not in said
        return said

    return call


@pytest.mark.parametrize("name", DAMAGE)
def test_the_row_and_the_field_are_named(name: str, data: Path, refused, tmp_path: Path) -> None:
    change, message, commands = DAMAGE[name]
    row = damaged(data, tmp_path / "data", change)
    for words in commands:
        said = refused(words, tmp_path / "data")
        assert message in said and f"row {AT + 1}" in said and f"'{row}'" in said, words


def test_tokens_that_the_model_lacks(data: Path, refused, tmp_path: Path) -> None:
    row = damaged(data, tmp_path / "data", put("answer_ids", 1, 320))
    for words in (FINETUNE, PRUNE, CUT):
        assert f"sample {row} of the data holds token 320" in refused(words, tmp_path / "data")
    assert f"row '{row}': answer_ids has the token 320" in refused(PACK, tmp_path / "data")


@pytest.mark.parametrize(
    ("field", "kind", "value"),
    [
        ("answer_ids", pa.list_(pa.string()), ["3"]),
        ("answer_ids", pa.string(), "3 4"),
        ("prompt_ids", pa.int32(), 3),
        ("topk_logprobs", pa.list_(pa.int32()), [0]),
        ("id", pa.int32(), 1),
    ],
)
def test_columns_of_another_type_are_named(field, kind, value, data: Path, refused, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    (file,) = (tmp_path / "data").glob("data-*.parquet")
    with parquet.ParquetFile(file) as old:
        table = old.read()
    column = pa.array([value] * len(table), kind)
    parquet.write_table(table.set_column(table.schema.get_field_index(field), field, column), file)
    assert f"column {field}: it holds {str(kind).split('<')[0]}" in refused(FINETUNE, tmp_path / "data")


def test_wider_numbers_are_the_same_data(data: Path, tokenizer, tmp_path: Path) -> None:
    """As pandas or polars would write it back."""
    kinds = {"answer_ids": pa.large_list(pa.int64()), "topk_logprobs": pa.list_(pa.float32()), "id": pa.large_string()}
    damaged(data, tmp_path / "data", lambda row: None, **kinds)
    one, other = ([*dataset.samples(folder, tokenizer)] for folder in (data, tmp_path / "data"))
    for left, right in zip(one, other, strict=True):
        assert (left.id, left.answer_ids, left.topk_ids.tolist()) == (
            right.id,
            right.answer_ids,
            right.topk_ids.tolist(),
        )
        assert left.topk_logprobs.tolist() == right.topk_logprobs.tolist()
    assert json.loads((data / "result.json").read_text())["rows"] == len(one)
