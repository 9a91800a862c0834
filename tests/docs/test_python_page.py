"""The blocks of the page on Python run, one after the other, on tiny models."""

import shutil
from pathlib import Path

import pytest

import stages
from blocks import code_blocks
from sparsedraft.native import extension

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


@pytest.mark.skipif(not extension.available(), reason="the extension was not built")
def test_every_block_runs(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("target", "drafter"):
        shutil.copytree(tiny_checkpoint, tmp_path / name)
    stages.pack(str(tiny_checkpoint), tmp_path / "sd2-int8", weights="int8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = code_blocks(PAGE)
    assert len(blocks) >= 3
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
