"""Matrices that are kept as this CPU reads them: mapped, the same bits, and made again whenever they would not be."""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import packed_folders
from sparsedraft.base.errors import UserError
from sparsedraft.native import layout, layout_cache
from sparsedraft.native.layout_cache import location
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Engine

pytestmark = pytest.mark.skipif(not packed_folders.BUILT, reason="the extension was not built")
made = packed_folders.made
WINDOWS = ("llama", False, "1:16", "bf16")  # so sparse that all CPUs run it as windows
KINDS = [
    ("llama", True, "2:4", "int8"), ("qwen2", False, "unstructured", "bf16"), ("gemma3", True, "3:8", "f16"),
    ("llama", True, "4:8", "int4"), ("qwen2", False, "unstructured", "int4"),
]  # fmt: skip


@pytest.fixture
def laid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A cache of its own; the list grows with every matrix that is laid out, and not taken from it."""
    monkeypatch.delenv("SPARSEDRAFT_NATIVE_CACHE")
    monkeypatch.setenv("SPARSEDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(layout_cache, "SMALLEST", 0)
    calls, own = [], layout.lay_out

    def counted(stored, kind):
        calls.append(kind)
        return own(stored, kind)

    monkeypatch.setattr(layout, "lay_out", counted)
    return calls


def logits(folder: Path) -> torch.Tensor:
    return Engine(folder, threads=1).forward(packed_folders.IDS[0].tolist(), 8)


@pytest.mark.parametrize("how", ["copy", "map"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_second_time_everything_is_taken_from_there(
    made, laid: list[str], kind: tuple, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEDRAFT_NATIVE_CACHE", how)
    folder = made(*kind)[1]
    first, model = logits(folder), native_model(folder)
    assert len(laid) == 15, "7 linears of each of 2 layers, and the head, once"
    assert torch.equal(logits(folder), first)
    assert len(laid) == 15
    kept = location(folder)
    assert kept is not None
    assert (str(kept / "streams") in Path("/proc/self/maps").read_text()) == (how == "map")
    again = native_model(folder)
    for name in ("layouts", "macs_per_token", "linear_nonzero", "linear_weights", "other_parameters", "other_nonzero"):
        assert getattr(again, name) == getattr(model, name)
    shutil.rmtree(kept)
    assert torch.equal(Engine(again, threads=1).forward(packed_folders.IDS[0].tolist(), 8), first), "and not read twice"


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux lists what is mapped")
def test_a_copy_is_private_memory(tmp_path: Path) -> None:
    """Pages of 2 MB are given to private memory that asks for them; of shared memory most systems forbid them."""
    file = tmp_path / "streams"
    file.write_bytes(bytes(range(256)) * (3 << 14))
    copied = layout_cache._copied(file)
    assert copied.tobytes() == file.read_bytes()
    at = copied.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= at < last:
            assert line.split()[1] == "rw-p"
            return
    raise AssertionError("the copy is nowhere")


def test_an_unknown_way_is_refused(made, laid: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEDRAFT_NATIVE_CACHE", "of")
    with pytest.raises(UserError, match="SPARSEDRAFT_NATIVE_CACHE=of is not known: set it to copy, map or off"):
        native_model(made(*KINDS[0])[1])


@pytest.mark.parametrize("harm", ["flip", "cut", "index", "tiles", "no streams", "nonsense", "touched"])
def test_what_is_not_what_was_kept_is_made_again(made, laid: list[str], harm: str, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    shutil.copytree(made(*KINDS[0])[1], folder)
    first, kept = logits(folder), location(folder)
    assert kept is not None
    streams, index = kept / "streams", kept / "index.json"
    data = bytearray(streams.read_bytes())
    if harm == "flip":
        data[100] ^= 1
        streams.write_bytes(data)
    elif harm == "cut":
        streams.write_bytes(data[:-64])
    elif harm == "index":
        index.write_text(json.dumps({**json.loads(index.read_text()), "state": [0]}))
    elif harm == "tiles":
        changed = json.loads(index.read_text())
        next(iter(changed["matrices"].values()))["parts"]["tiles"][1] += 1 << 40
        index.write_text(json.dumps(changed))
    elif harm == "no streams":
        streams.unlink()
    elif harm == "nonsense":
        index.write_text("[")
    else:
        (folder / "model.safetensors").touch()
    for count in (30, 30):
        assert torch.equal(logits(folder), first) and len(laid) == count


def swapped(values: list) -> None:
    values[0], values[1] = values[1], values[0]


def signed(kept: Path, change: Callable[[dict], None]) -> None:
    """Change the index of one of the kept matrices, and sign it as if it had always been so."""
    index = json.loads((kept / "index.json").read_text())
    change(index["matrices"]["model.layers.0.mlp.up_proj"])
    text = json.dumps(index["matrices"]).encode()
    index["sha256"] = hashlib.sha256((kept / "streams").read_bytes() + text).hexdigest()
    (kept / "index.json").write_text(json.dumps(index))


HARMS: list[tuple[tuple, str, Callable[[dict], None]]] = [
    (KINDS[0], "layout", lambda kept: kept["parts"].update(layout="dense")),
    (KINDS[0], "layout", lambda kept: kept["parts"].update(layout="coo")),
    (KINDS[0], "N", lambda kept: kept["parts"].update(n=4)),
    (KINDS[2], "N", lambda kept: kept["parts"].update(n=2)),
    (KINDS[2], "values", lambda kept: kept["parts"].update(values="bf16")),
    (KINDS[0], "rows", lambda kept: kept["parts"].update(rows=127)),
    (KINDS[0], "columns", lambda kept: kept["parts"].update(columns=63)),
    (KINDS[0], "more values than there are", lambda kept: kept.update(nonzero=1 << 40)),
    (KINDS[0], "another scale", lambda kept: kept["parts"]["scale"].__setitem__(3, 0.25)),
    (KINDS[0], "scales in another order", lambda kept: swapped(kept["parts"]["scale"])),
    (KINDS[0], "too few scales", lambda kept: kept["parts"]["scale"].pop()),
    (KINDS[0], "an order", lambda kept: kept["parts"].update(order=[*range(128)])),
    (KINDS[0], "a tile too short", lambda kept: kept["parts"]["tiles"].__setitem__(1, 64)),
    (KINDS[1], "tiles backwards", lambda kept: swapped(kept["parts"]["tiles"])),
    (KINDS[1], "a tile of the next one's", lambda kept: kept["parts"]["tiles"].__setitem__(3, 10**6)),
    (KINDS[1], "a mask that is none", lambda kept: kept["parts"]["tiles"].__setitem__(1, 8)),
    (KINDS[1], "no beginning", lambda kept: kept.update(begin=kept["begin"] + 8)),
    (KINDS[1], "no end", lambda kept: kept.update(end=kept["begin"])),
    (WINDOWS, "a row twice", lambda kept: kept["parts"]["order"].__setitem__(0, kept["parts"]["order"][1])),
    (WINDOWS, "a row that is not there", lambda kept: kept["parts"]["order"].__setitem__(0, 128)),
    (WINDOWS, "a row that no one holds", lambda kept: kept["parts"]["order"].__setitem__(0, -1)),
    (WINDOWS, "too short an order", lambda kept: kept["parts"]["order"].pop()),
    (WINDOWS, "no order", lambda kept: kept["parts"].update(order=[])),
]


@pytest.mark.parametrize(("kind", "name", "harm"), HARMS, ids=[f"{i} {harm[1]}" for i, harm in enumerate(HARMS)])
def test_what_was_signed_again_must_still_be_the_matrix(
    made, laid: list[str], kind: tuple, name: str, harm: Callable[[dict], None], tmp_path: Path
) -> None:
    """Each of these gave another text, or read beyond the file, while all that was checked was the signature."""
    folder = tmp_path / "packed"
    shutil.copytree(made(*kind)[1], folder)
    first, kept = logits(folder), location(folder)
    assert kept is not None
    signed(kept, lambda matrix: None)
    assert torch.equal(logits(folder), first) and len(laid) == 15, "the signature is right"
    signed(kept, harm)
    assert torch.equal(logits(folder), first) and len(laid) == 16, "one matrix is laid out again"
    assert torch.equal(logits(folder), first) and len(laid) == 16, "and kept beside the others"


def test_windows_stay_on_their_columns(made, laid: list[str], tmp_path: Path) -> None:
    """A window of the stream moved beyond the inputs, and signed."""
    folder = tmp_path / "packed"
    shutil.copytree(made(*WINDOWS)[1], folder)
    first, kept = logits(folder), location(folder)
    assert kept is not None
    streams = bytearray((kept / "streams").read_bytes())
    index = json.loads((kept / "index.json").read_text())
    begin = index["matrices"]["model.layers.0.mlp.up_proj"]["begin"]
    streams[begin + 4 : begin + 6] = b"\xff\xff"  # after the count of steps: the first one's column
    (kept / "streams").write_bytes(streams)
    signed(kept, lambda matrix: None)
    assert torch.equal(logits(folder), first) and len(laid) == 16


def left(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{layout_cache.SCRATCH}*"))


def test_ctrl_c_leaves_nothing(made, laid: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = layout_cache.LayoutCache._write

    def stopped(self, work: Path) -> None:
        own(self, work)
        assert left(tmp_path / "cache" / "native") == [work]
        raise KeyboardInterrupt

    monkeypatch.setattr(layout_cache.LayoutCache, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        native_model(made(*KINDS[0])[1])
    assert list((tmp_path / "cache" / "native").iterdir()) == []


def test_what_killed_processes_left_is_swept(made, laid: list[str], tmp_path: Path) -> None:
    """Theirs alone: what a living one fills stays, and what is too new to tell."""
    cache = tmp_path / "cache" / "native"
    ready, told = os.pipe()
    if (child := os.fork()) == 0:
        with layout_cache._scratch(cache):
            os.write(told, b"1")
            signal.pause()
    os.read(ready, 1)
    (cache / ".new-fresh").mkdir()
    (cache / ".new-old").mkdir()
    os.utime(cache / ".new-old", (0, 0))
    (filled,) = [path for path in left(cache) if (path / layout_cache.LOCK).exists()]
    first = logits(made(*KINDS[0])[1])
    assert left(cache) == sorted([filled, cache / ".new-fresh"])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert torch.equal(logits(made(*KINDS[0])[1]), first) and len(laid) == 15
    assert left(cache) == [cache / ".new-fresh"]


def test_where_nothing_can_be_kept_loading_goes_on(made, laid: list[str], monkeypatch, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SPARSEDRAFT_CACHE", str(tmp_path / "file"))
    for switch, told in (("copy", True), ("map", True), ("off", False)):
        monkeypatch.setenv("SPARSEDRAFT_NATIVE_CACHE", switch)
        before = len(laid)
        assert torch.equal(logits(made(*KINDS[0])[1]), logits(made(*KINDS[0])[1]))
        assert len(laid) == before + 30
        assert ("are not kept in" in capsys.readouterr().err) == told


def test_small_models_and_plain_checkpoints_are_not_kept(made, laid: list[str], monkeypatch, tmp_path: Path) -> None:
    native_model(made(*KINDS[0])[0])
    monkeypatch.setattr(layout_cache, "SMALLEST", 1 << 20)
    native_model(made(*KINDS[0])[1])
    assert not (tmp_path / "cache").exists()
