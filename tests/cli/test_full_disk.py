"""A disk that is full: one sentence, and the same command goes on when there is room."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forks import Fork
from sparsedraft import cli

NEW_MOUNTS = 0x00020000  # CLONE_NEWNS: mounts that no other process sees


def on_a_small_disk() -> int:
    """The command in sys.argv on a file system of 600 KB at its first word, and again after that was enlarged."""
    disk, *words = sys.argv[1:]
    mounts = (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", "size=600k", "tmpfs", disk])
    if ctypes.CDLL(None).unshare(NEW_MOUNTS) or any(subprocess.run(["mount", *words]).returncode for words in mounts):
        return 77
    sys.argv[1:] = words
    for name in ("first", "second"):
        with pytest.raises(SystemExit) as ended:
            cli.main()
        print(name, ended.value.code)
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
    print(*Path(disk, "out").iterdir())
    return 0


def test_full_disk_is_one_sentence_and_goes_on_later(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """On a real file system: too small for the checkpoint, then enlarged."""
    disk, said, told = (tmp_path / name for name in ("disk", "stdout", "stderr"))
    disk.mkdir()
    words = ("prune", tiny_checkpoint, "--out", disk / "out", "--calibration", "demo:train", "--tokens", 512)
    process = Fork(disk, *words, "--sequence-length", 64, stdout=said, stderr=told, main=on_a_small_disk)
    if process.wait(timeout=300) == 77:
        pytest.skip("may not mount a file system here")
    out, err = said.read_text(), told.read_text()
    assert "first 2" in out and "the disk is full" in err and "Traceback" not in err, err
    assert "second 0" in out and "model.safetensors" in out
    assert re.search("going on where an earlier run stopped", err)
