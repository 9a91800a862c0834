"""Pruning's memory is what the formula says, and does not grow with the calibration text."""

import os
import sys
from pathlib import Path

import pytest

from common import GIB, measured
from sparsedraft import checkpoint
from sparsedraft.measure.macs import skeleton
from sparsedraft.prune import memory


def peak(model: Path, out: Path, tokens: int) -> float:
    """Peak resident GiB of `sparsedraft prune` in a process of its own."""
    options = ("--calibration", "demo:train", "--tokens", str(tokens), "--sequence-length", "256", "--pattern", "2:4")
    return measured("prune", model, "--out", out, *options, env={**os.environ, "OMP_NUM_THREADS": "1"})[1]


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured as Linux counts it")
def test_smollm2_takes_what_is_predicted(smollm2: Path, tmp_path: Path) -> None:
    predicted = memory.peak(skeleton(checkpoint.read_config(smollm2)), 4) / GIB
    assert peak(smollm2, tmp_path / "out", 1024) == pytest.approx(predicted, rel=0.25)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured as Linux counts it")
def test_more_calibration_takes_no_more_memory(tiny_llama, tokenizer, tmp_path: Path) -> None:
    checkpoint.save(tiny_llama(hidden_size=1024, intermediate_size=64, layers=2), tokenizer, tmp_path / "wide")
    few, many = (peak(tmp_path / "wide", tmp_path / f"out{n}", n) for n in (4096, 36864))  # two batches at least
    states = (36864 - 4096) * 1024 * 4 / GIB
    assert many - few < 0.5 * states, f"the hidden states alone would be {states} GiB"
