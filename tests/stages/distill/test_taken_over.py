"""Data that were written before: taken over only where the target writes the same again."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from sparsedraft.base.errors import UserError
from sparsedraft.native import extension
from sparsedraft.stages.distill.options import DistillOptions
from sparsedraft.stages.distill.stage import distill
from sparsedraft.stages.distill.stored import Stored
from sparsedraft.text import dataset

pytestmark = pytest.mark.skipif(not extension.available(), reason="the extension was not built")
HOW = {"prompts": "demo:train", "limit": 12, "max_new_tokens": 10, "engine": "native"}


@pytest.fixture
def stored(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    distill(DistillOptions(target=str(tiny_checkpoint), out=tmp_path / "stored", **HOW))
    return tmp_path / "stored"


@pytest.mark.parametrize("again", [0, 5, 1000])
def test_rows_are_taken_over_and_some_are_written_again(
    stored: Path, again: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    result = Stored(stored, str(tiny_checkpoint), again).take_over(tmp_path / "out")
    rows = dataset.read(stored)
    assert dataset.read(tmp_path / "out") == rows and result["again"] == min(again, len(rows))
    assert result["target_tokens"] == dataset.read_result(stored)["target_tokens"]
    assert dataset.same_tokenizer(tmp_path / "out", dataset.checkpoint.load_tokenizer(tiny_checkpoint))


def test_an_answer_that_the_target_writes_otherwise_is_named(
    stored: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (file,) = stored.glob("data-*.parquet")
    rows = parquet.read_table(file).to_pylist()
    rows[3]["answer_ids"][2] ^= 1
    parquet.write_table(pa.Table.from_pylist(rows, schema=dataset.SCHEMA), file)
    with pytest.raises(UserError, match=f"row {rows[3]['id']} of the stored data .* otherwise, from token 2 on"):
        Stored(stored, str(tiny_checkpoint), len(rows)).take_over(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sampled_data_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    distill(DistillOptions(target=str(tiny_checkpoint), out=tmp_path / "warm", temperature=1.0, **HOW))
    with pytest.raises(UserError, match=r"was sampled .* only greedy answers can be written again"):
        Stored(tmp_path / "warm", str(tiny_checkpoint), 2).take_over(tmp_path / "out")


def test_rows_of_the_evaluation_are_left_out(stored: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Prompts that are kept for it are no training data, wherever they come from."""
    first = dataset.read(stored)[0]["messages"][0]["content"]
    (tmp_path / "kept.jsonl").write_text(json.dumps({"prompt": first}) + "\n")
    result = Stored(stored, str(tiny_checkpoint), 2, (str(tmp_path / "kept.jsonl"),)).take_over(tmp_path / "out")
    assert result["dropped"]["evaluation text"] >= 1 and result["rows"] < dataset.read_result(stored)["rows"]
