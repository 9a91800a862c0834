"""With SPARSEDRAFT_NATIVE_CACHE=map, processes that run one packed folder have its weights in memory once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stages
from sparsedraft.models import checkpoint
from sparsedraft.native import extension
from sparsedraft.native.layout_cache import SMALLEST, location
from tiny import build_llama, build_tokenizer

pytestmark = [
    pytest.mark.skipif(not extension.is_built(), reason="the extension was not built"),
    pytest.mark.skipif(sys.platform != "linux", reason="as Linux counts pages"),
]
RUN = """
import sys
from sparsedraft.native.session import Engine
engine = Engine(sys.argv[1], threads=1)
engine.forward([5, 6, 7])
print("ready", flush=True)
sys.stdin.read()
"""


def mapped(process: int, file: Path) -> tuple[int, int]:
    """(resident kB that `process` has of `file`, its share of them: each page divided by who has it mapped)."""
    rss = pss = 0
    inside = False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(file))
        elif inside and line.startswith(("Rss:", "Pss:")):
            size = int(line.split()[1])
            rss, pss = (rss + size, pss) if line.startswith("Rss") else (rss, pss + size)
    return rss, pss


@pytest.mark.parametrize("count", [2, 3])
def test_weights_are_there_once(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(
        build_llama(layers=7, hidden_size=512, intermediate_size=2048), build_tokenizer(), tmp_path / "model",
        dtype=torch.float16,
    )  # fmt: skip
    stages.pack(str(tmp_path / "model"), tmp_path / "packed", weights="int8")
    monkeypatch.setenv("SPARSEDRAFT_NATIVE_CACHE", "map")
    monkeypatch.setenv("SPARSEDRAFT_CACHE", str(tmp_path / "cache"))
    subprocess.run([sys.executable, "-c", RUN, tmp_path / "packed"], stdin=subprocess.DEVNULL, check=True)
    kept = location(tmp_path / "packed")
    assert kept is not None and (kept / "streams").stat().st_size > SMALLEST
    command = [sys.executable, "-c", RUN, str(tmp_path / "packed")]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(count)
    ]
    try:
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in running:
            resident, share = mapped(process.pid, kept / "streams")
            assert resident > 0.95 * (kept / "streams").stat().st_size / 1024, "all weights are in its memory"
            assert share == pytest.approx(resident / count, rel=0.05), "and divided by all that have them"
    finally:
        for process in running:
            process.kill()
            process.wait()
