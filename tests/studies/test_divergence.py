"""The study that measures how far rounded models stray from their checkpoint."""

import json
from pathlib import Path

import pytest
import torch

import divergence
import stages
from packed_folders import build, save
from sparsedraft.native import extension as native

pytestmark = pytest.mark.skipif(not native.is_built(), reason="not built")
SMALL = ["--tokens", "96", "--length", "32"]


def test_divergence_of_equal_and_of_certain_logits() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert divergence.divergence(logits, logits + 3) == (pytest.approx(0, abs=1e-6), 1.0)
    sure, even = torch.tensor([[0.0, -100.0]]), torch.zeros(1, 2)
    kl, same = divergence.divergence(sure, even)  # ln 2: what an even choice loses to a sure one
    assert kl == pytest.approx(0.6931472) and same == 1.0


def test_rows_stay_and_other_inputs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = save(build("llama", tied=True), tmp_path / "target")
    for weights in ("int8", "int4"):
        stages.pack(str(target), tmp_path / weights, weights=weights)
    out = ["--out", str(tmp_path / "out")]
    named = [f"{name}={tmp_path / name}" for name in ("int8", "int4")]
    divergence.main([str(target), *named, *SMALL, *out])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["label"] for row in rows] == ["int8", "int4"] and 0 < rows[0]["kld"] < rows[1]["kld"]
    divergence.main([str(target), *named, *SMALL, *out, "--against", "int4"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == rows
    for wrong in (
        [*named, "--tokens", "64", "--length", "32"],
        [*named, "--tokens", "96", "--length", "16"],
        [f"int8={tmp_path / 'int4'}", *SMALL],
        [f"new={tmp_path / 'int4'}", "--tokens", "64", "--length", "32"],
        ["int8", *SMALL],
        [*named, *SMALL, "--against", "f16"],
    ):
        with pytest.raises(SystemExit) as ended:
            divergence.main([str(target), *wrong, *out])
        assert ended.value.code == 2
