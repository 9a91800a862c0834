"""The page on a folder of distilled data."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsedraft.base.errors import UserError
from stages import distill, report


def test_the_page_on_a_data_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    result = distill(str(tiny_checkpoint), "demo:train", out, max_new_tokens=12, limit=20, top_k_logprobs=4)
    before = sorted(p.name for p in out.iterdir())
    written = report(out)
    page, markdown = (Path(written[key]).read_text() for key in ("report", "markdown"))
    assert sorted(p.name for p in out.iterdir()) == sorted([*before, "report"])
    for text in (page, markdown):
        assert f"{result['rows']:,} rows" in text and f"{result['target_tokens']:,} answer tokens" in text
        assert text.count("<h3>" if text is page else "### ") == 10
        assert "4 likeliest tokens" in text
    assert page.count("<svg") == 2 and not re.search(r'(src|href)="http', page)
    assert report(out) == written
    size = sum(f.stat().st_size for f in out.glob("data-*.parquet")) / result["target_tokens"]
    assert f"{size:.0f} bytes on disk" in page


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("data-00000.parquet", lambda file: file.write_bytes(file.read_bytes()[:900])),
        ("result.json", lambda file: file.write_text("{")),
        ("result.json", lambda file: file.write_text("[" * 200_000)),
        ("result.json", lambda file: file.unlink()),
    ],
    ids=["torn", "no-json", "deep", "no-result"],
)
def test_a_damaged_data_folder_has_no_page_but_one_sentence(
    name: str, spoil: Callable[[Path], object], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    distill(str(tiny_checkpoint), "demo:train", tmp_path / "data", max_new_tokens=4, limit=4)
    spoil(tmp_path / "data" / name)
    with pytest.raises(UserError, match=r"distill it again|is no distilled data folder"):
        report(tmp_path / "data")
