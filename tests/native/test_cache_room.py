"""The folder of laid-out matrices does not grow for ever, and does not fill the disk."""

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest

import packed_folders
from sparsedraft.native import cache_room, layout_cache
from sparsedraft.native.cache_room import RESERVE, UNUSED, make_room, note_source, note_use
from sparsedraft.native.model import native_model

DAY = 86400.0


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    """Caches of 1,000 bytes, of packed folders that are there: old, older and oldest in days since their last use."""
    for name, days in (("old", 1), ("older", 2), ("oldest", 3)):
        (source := tmp_path / "packed" / name).mkdir(parents=True)
        (cache := tmp_path / "native" / name).mkdir(parents=True)
        (cache / "streams").write_bytes(bytes(1000 - len(str(source))))
        (cache / "index.json").touch()
        note_source(cache, source)
        os.utime(cache / "index.json", (time.time() - days * DAY,) * 2)
    return tmp_path / "native"


def free(monkeypatch: pytest.MonkeyPatch, beyond: int) -> None:
    """The disk has RESERVE and so many bytes more."""
    monkeypatch.setattr(cache_room.shutil, "disk_usage", lambda _: Usage(0, 0, RESERVE + beyond))


def names(caches: Path) -> set[str]:
    return {cache.name for cache in caches.iterdir()}


@pytest.mark.parametrize(
    ("beyond", "size", "left"),
    [
        (5000, 4999, {"old", "older", "oldest"}),
        (5000, 5001, {"old", "older"}),
        (0, 1000, {"old", "older"}),
        (0, 1001, {"old"}),
        (-1500, 1500, set()),
    ],
)
def test_the_longest_unused_make_room(
    beyond: int, size: int, left: set[str], caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, beyond)
    assert make_room(caches, size)
    assert names(caches) == left


def test_none_goes_in_vain(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 0)
    assert not make_room(caches, 3001)
    assert names(caches) == {"old", "older", "oldest"}


def test_what_is_not_needed_goes_first(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(caches.parent / "packed" / "old")
    os.utime(caches / "older" / "index.json", (time.time() - UNUSED - DAY,) * 2)
    (caches / "oldest" / "source").unlink()  # of a version that did not write it down
    (caches / ".new-being-filled").mkdir()
    free(monkeypatch, 10**9)
    assert make_room(caches, 1)
    assert names(caches) == {"oldest", ".new-being-filled"}


def test_a_use_counts(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_use(caches / "oldest")
    free(monkeypatch, 0)
    assert make_room(caches, 500)
    assert names(caches) == {"old", "oldest"}


@pytest.mark.skipif(not packed_folders.BUILT, reason="the extension was not built")
def test_a_full_disk_gets_no_cache_and_the_model_runs(
    made: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SPARSEDRAFT_NATIVE_CACHE")
    monkeypatch.setenv("SPARSEDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(layout_cache, "SMALLEST", 0)
    folder = packed_copy(made, tmp_path)
    free(monkeypatch, -RESERVE)
    assert native_model(folder).handle.bytes > 0
    assert "would leave too little free there" in capsys.readouterr().err.replace("\n", " ")
    assert not any((tmp_path / "cache" / "native").iterdir())
    free(monkeypatch, 10**9)
    native_model(folder)
    (cache,) = (tmp_path / "cache" / "native").iterdir()
    assert (cache / "source").read_text() == str(folder.resolve())
    # another packed folder is loaded, and this one is no more
    other = packed_copy(made, tmp_path / "other")
    shutil.rmtree(folder)
    native_model(other)
    (left,) = (tmp_path / "cache" / "native").iterdir()
    assert (left / "source").read_text() == str(other.resolve())


made = packed_folders.made


def packed_copy(made, folder: Path) -> Path:
    """A packed folder of this test alone."""
    return Path(shutil.copytree(made("llama", True, "2:4", "int8")[1], folder / "packed"))
