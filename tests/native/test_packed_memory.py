"""The memory that loading a packed folder takes is what the check before it counts."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import packed_folders
import stages
from sparsedraft.base.errors import UserError
from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.native import extension, layout, layout_choice, memory, model
from sparsedraft.native.blocks import BLOCKS
from sparsedraft.native.packed_folder import PackedReader
from sparsedraft.native.packed_format import pack_matrix, unpack_matrix
from sparsedraft.native.stored_matrix import VALUE_TYPES
from tiny import build_llama

pytestmark = pytest.mark.skipif(not extension.is_built(), reason="not built")
LOAD = """
import sys
from pathlib import Path
from sparsedraft.native.model import native_model

def status(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024

native_model(Path(sys.argv[1]))  # brings the code of all that it calls into memory
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
kept = native_model(Path(sys.argv[1]))
print(status("VmHWM") - before)
"""


def peak(folder: Path) -> int:
    """Bytes that loading `folder` adds to the resident memory of a process of its own, at most."""
    paths = os.pathsep.join(sys.path)
    env = {**os.environ, "PYTHONPATH": paths, "MALLOC_MMAP_THRESHOLD_": "131072", "SPARSEDRAFT_NATIVE_CACHE": "off"}
    command = [sys.executable, "-c", LOAD, str(folder)]
    return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured as Linux counts it")
@pytest.mark.parametrize(
    ("tied", "pattern", "weights", "head", "embedding"),
    [
        (True, None, "int4", "int4", "int4"), (False, "unstructured", "int4", "int4", "int4"),
        (True, "2:4", "int4", "int8", "int8"), (True, "2:4", "int4", "int8", "f16"),
    ],
)  # fmt: skip
def test_loading_takes_what_is_counted(
    tied: bool, pattern: str | None, weights: str, head: str, embedding: str, tmp_path: Path
) -> None:
    """Never more, as the check is to spare an OOM kill, and not much less."""
    sizes = {"vocab_size": 40_000, "hidden_size": 512, "intermediate_size": 1024, "layers": 1}
    source = packed_folders.save(build_llama(tie_word_embeddings=tied, **sizes), tmp_path / "source", pattern)
    stages.pack(str(source), tmp_path / "packed", weights=weights, head_weights=head, embedding_weights=embedding)
    reader = PackedReader(tmp_path / "packed")
    counted, taken = memory.loading_bytes(reader), peak(tmp_path / "packed")
    assert 0.7 * counted < taken < 1.05 * counted


@pytest.mark.parametrize("lanes", ["avx2", "avx512"])
@pytest.mark.parametrize("values", [values for values in VALUE_TYPES if values not in {"f32", *BLOCKS}])
@pytest.mark.parametrize("kind", ["dense", "bitmask", "2:4", "4:8", "2:8", "1:8", "8:16"])
def test_layouts_have_the_bytes_that_are_counted(kind: str, values: str, lanes: str, monkeypatch) -> None:
    """Of every kind, type and CPU, and of odd sizes; windows nearly."""
    monkeypatch.setattr(layout_choice, "fastest", lambda: lanes)
    weight = torch.randn(45, 1008, generator=torch.Generator().manual_seed(0))
    if kind != "dense":
        pattern = Pattern.parse(kind) if ":" in kind else Pattern()
        weight *= keep_mask(pattern, weight.abs(), 0.85 if kind == "bitmask" else pattern.resolve(None))
    entry, tensors = pack_matrix(weight, kind, values)
    stored = unpack_matrix("w", entry, tensors)
    count = tensors["values"].numel() * (2 if values == "int4" else 1)
    matrix, label = layout.lay_out(stored, kind)
    parts = extension.extension().parts_of(matrix)
    found = len(np.asarray(parts["stream"])) + 4 * len(parts["scale"])
    counted = memory.laid_out_bytes(entry, count)
    low = 0.85 if label.startswith("window") else 0.995
    assert low * counted <= found <= 1.005 * counted + 64 + 8 * -(-45 // 8)


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch) -> None:
    source = packed_folders.save(packed_folders.build("llama", True), tmp_path / "source")
    stages.pack(str(source), tmp_path / "packed", weights="int4", head_weights="int4")
    needed = memory.loading_bytes(PackedReader(tmp_path / "packed"))
    monkeypatch.setattr(model, "available_memory", lambda: needed)
    model.native_model(tmp_path / "packed")
    monkeypatch.setattr(model, "available_memory", lambda: needed - 1)
    with pytest.raises(UserError, match=r"needs 0\.00 GiB of memory, and 0\.00 GiB are free: pack it to int4 or int8"):
        model.native_model(tmp_path / "packed")
