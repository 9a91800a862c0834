"""Memory is what the formulas say, and pruning's does not grow with the calibration text."""

import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from common import GIB, measured
from sparsedraft.models import checkpoint
from sparsedraft.models.skeleton import skeleton
from sparsedraft.stages.finetune import memory as finetuning
from sparsedraft.stages.finetune.loop import Settings
from sparsedraft.stages.prune import memory


def peak(model: Path, out: Path, tokens: int) -> float:
    """Peak resident GiB of `sparsedraft prune` in a process of its own, which gives freed buffers back at once.

    glibc raises its threshold for that as a process frees, by chance of the order: tens of MB that say nothing of us.
    """
    options = ("--calibration", "demo:train", "--tokens", str(tokens), "--sequence-length", "256", "--pattern", "2:4")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
    return measured("prune", model, "--out", out, *options, env=env)[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured as Linux counts it")
def test_smollm2_takes_what_is_predicted(smollm2: Path, tmp_path: Path) -> None:
    """Four layers of it, with its whole head: test_prune_stage shows that no more than one layer is ever in memory."""
    model = AutoModelForCausalLM.from_pretrained(smollm2, num_hidden_layers=4, dtype=torch.bfloat16)
    checkpoint.save(model, checkpoint.load_tokenizer(smollm2), tmp_path / "model")
    predicted = memory.peak(skeleton(model.config), 4) / GIB
    assert peak(tmp_path / "model", tmp_path / "out", 256) == pytest.approx(predicted, rel=0.25)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured as Linux counts it")
def test_more_calibration_takes_no_more_memory(tiny_llama, tokenizer, tmp_path: Path) -> None:
    checkpoint.save(tiny_llama(hidden_size=512, intermediate_size=64, layers=1), tokenizer, tmp_path / "wide")
    few, many = (peak(tmp_path / "wide", tmp_path / f"out{n}", n) for n in (4096, 20480))  # two batches at least
    states = (20480 - 4096) * 512 * 4 / GIB
    assert many - few < 0.5 * states, f"the hidden states alone would be {states} GiB"


def test_finetuning_counts_what_each_option_saves(tiny_llama) -> None:
    """The figures themselves are held against a real run by benchmarks/finetuning.py."""
    model = tiny_llama(layers=6)

    def peak(
        density: float | None = None, halves: bool = False, layers: int | None = None, teacher: int = 0, **changed
    ) -> int:
        settings = Settings(sequence_length=64, **changed)
        return finetuning.peak(model, settings, density=density, halves=halves, layers=layers, teacher=teacher)

    dense = peak()
    assert dense > peak(0.5) > peak(0.25), "moments of the weights that live alone"
    assert dense > peak(train_embeddings=False) > peak(0.5, train_embeddings=False)
    assert dense > peak(gradient_checkpointing=True) and dense > peak(rows_per_step=1)
    assert dense > peak(layers=3) > peak(layers=1)
    assert peak(teacher=1000) == dense + 1000
