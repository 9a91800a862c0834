"""Fine-tuning now and as commit fff1e69 did it, in processes of their own that take steps in turns."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import CACHE, GIB, IDLE, ROOT
from peers import Missing, finished
from sparsedraft.text import bins
from sparsedraft.text.sample import Sample

COMMIT = "fff1e69"
WORKER = Path(__file__).with_name("finetuning_worker.py")


def checkout() -> Path:
    """The folder of that commit's sources; training needs no extension. Missing where the history is not."""
    folder = CACHE / "earlier" / COMMIT
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            archive, tree = Path(work) / "tree.tar", Path(work) / "tree"
            finished(["git", "-C", ROOT, "archive", "-o", archive, COMMIT, "src"])
            shutil.unpack_archive(archive, tree, filter="data")
            tree.rename(folder)
    return folder


class Training:
    """One of the two, at a step's end; `step` takes the next one."""

    def __init__(self, sources: Path, *arguments: str | Path | int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(sources / "src")}
        self._process = subprocess.Popen(
            [sys.executable, *map(str, (WORKER, *arguments))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._said()  # the first step is a warm-up

    def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            return json.loads(self._process.stdout.readline())
        except ValueError:
            self.close()
            raise Missing("a training ended: its last words stand above") from None

    def step(self) -> dict[str, Any]:
        """Seconds, and the most bytes so far."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._said()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Comparison:
    """Now against before: seconds of before over those of now, step by step; peak bytes; losses of each step."""

    ratio: float
    ratios: list[float]
    seconds: tuple[float, float]
    gib: tuple[float, float]
    losses: tuple[list[float], list[float]]


def compare(
    checkpoint: Path, samples: Sequence[Sample], settings: dict[str, Any], dtype: str, threads: int, steps: int
) -> Comparison:
    """Train `checkpoint` by both for `steps` steps, a first and a last one; they alternate, and see the same rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "samples.json"
        data.write_text(json.dumps([[s.prompt_ids, s.answer_ids] for s in samples]))
        how = json.dumps(settings | {"tokens": _budget(samples[1:], settings, steps + 2)})
        both = []
        try:
            for number, sources in enumerate((ROOT, checkout())):
                own = folder / str(number)
                own.mkdir()
                both.append(Training(sources, checkpoint, data, how, dtype, threads, own))
            taken: list[list[dict[str, Any]]] = [[], []]
            for _ in range(steps):
                for training, column in zip(both, taken, strict=True):
                    column.append(training.step())
                    time.sleep(IDLE)
            for training in both:  # the last step validates and saves
                training.step()
            ends = [training.step() for training in both]
        finally:
            for training in both:
                training.close()
    now, before = ([entry["seconds"] for entry in column] for column in taken)
    ratios = [b / a for a, b in zip(now, before, strict=True)]
    gib = [column[-1]["bytes"] / GIB for column in taken]
    return Comparison(
        statistics.median(ratios), ratios, (statistics.median(now), statistics.median(before)), (gib[0], gib[1]),
        (ends[0]["losses"], ends[1]["losses"]),
    )  # fmt: skip


def _budget(samples: Sequence[Sample], settings: dict[str, Any], steps: int) -> int:
    """Tokens for which the loop makes `steps` steps."""
    rows = len(bins.assign(samples, settings["sequence_length"], packable=True))
    return round(steps * settings["rows_per_step"] * sum(map(len, samples)) / rows)
