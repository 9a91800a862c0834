"""Matrices that are kept as this CPU reads them: mapped, the same bits, and made anew whenever they would not be."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import packed_folders
from sparsedraft.errors import UserError
from sparsedraft.runtime import kinds, relaid
from sparsedraft.runtime.engine import Engine
from sparsedraft.runtime.model import native_model
from sparsedraft.runtime.relaid import place

pytestmark = pytest.mark.skipif(not packed_folders.BUILT, reason="the extension was not built")
made = packed_folders.made
KINDS = [("llama", True, "2:4", "int8"), ("qwen2", False, "unstructured", "bf16"), ("gemma3", True, "3:8", "f16")]


@pytest.fixture
def laid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A cache of its own; the list grows with every matrix that is laid out, and not taken from it."""
    monkeypatch.delenv("SPARSEDRAFT_NATIVE_CACHE")
    monkeypatch.setenv("SPARSEDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(relaid, "SMALLEST", 0)
    calls, own = [], kinds.lay_out

    def counted(values, scale, kind):
        calls.append(kind)
        return own(values, scale, kind)

    monkeypatch.setattr(kinds, "lay_out", counted)
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
    kept = place(folder)
    assert kept is not None
    assert (str(kept / "streams") in Path("/proc/self/maps").read_text()) == (how == "map")
    again = native_model(folder)
    for name in ("runs", "macs_per_token", "nonzero", "weights", "others", "others_nonzero"):
        assert getattr(again, name) == getattr(model, name)
    shutil.rmtree(kept)
    assert torch.equal(Engine(again, threads=1).forward(packed_folders.IDS[0].tolist(), 8), first), "and not read twice"


def test_an_unknown_way_is_refused(made, laid: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEDRAFT_NATIVE_CACHE", "of")
    with pytest.raises(UserError, match="SPARSEDRAFT_NATIVE_CACHE=of is not known: set it to copy, map or off"):
        native_model(made(*KINDS[0])[1])


@pytest.mark.parametrize("harm", ["flip", "cut", "index", "tiles", "no streams", "nonsense", "touched"])
def test_what_is_not_what_was_kept_is_made_anew(made, laid: list[str], harm: str, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    shutil.copytree(made(*KINDS[0])[1], folder)
    first, kept = logits(folder), place(folder)
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
        next(iter(changed["parts"].values()))["parts"]["tiles"][1] += 1 << 40
        index.write_text(json.dumps(changed))
    elif harm == "no streams":
        streams.unlink()
    elif harm == "nonsense":
        index.write_text("[")
    else:
        (folder / "model.safetensors").touch()
    for count in (30, 30):
        assert torch.equal(logits(folder), first) and len(laid) == count


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
    monkeypatch.setattr(relaid, "SMALLEST", 1 << 20)
    native_model(made(*KINDS[0])[1])
    assert not (tmp_path / "cache").exists()
