"""The wheel of `make wheel`: where there is no compiler it installs, and the native engine runs from it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import packed_folders
import sparsedraft
from places import ROOT

TOOLS = ("auditwheel", "nanobind", "nanobind_backend", "scikit_build_core")  # of the extra `dev`
LACKING = [name for name in TOOLS if importlib.util.find_spec(name) is None]
OBJECTS = [*ROOT.glob("build/cp*-abi3-*/build.ninja")]  # of the installation that `make test` makes, used again here
COMPILERS = ("c++", "g++", "gcc", "cc", "clang++", "cmake", "ninja", "make")
made = packed_folders.made  # fixture
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("make"), reason="needs Linux, and make"),
    pytest.mark.skipif(not packed_folders.BUILT, reason="the extension was not built"),
    pytest.mark.skipif(not OBJECTS, reason="build/ has no objects: compiling takes minutes (make wheel, or make test)"),
    pytest.mark.skipif(bool(LACKING), reason=f"needs {', '.join(LACKING)}"),
]


def run(*command: object, **environment: str) -> str:
    """Standard output of a command that must succeed, in an environment of these variables alone."""
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, by the Python that runs this test; objects in build/ that are up to date are not compiled again."""
    dist = tmp_path_factory.mktemp("wheel") / "dist"
    outside = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL")
    }
    run("make", "-C", ROOT, "wheel", f"WHEEL_PYTHON={sys.executable}", f"DIST={dist}", **outside)
    (file,) = dist.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel; its dependencies are those of this test's environment."""
    root = tmp_path_factory.mktemp("installed")
    venv.create(root, symlinks=True)
    python = root / "bin" / "python"
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, **os.environ
    )
    (site,) = root.glob("lib/python*/site-packages")
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in paths))
    return root / "bin"


def test_one_file_for_every_python_and_cpu(wheel: Path) -> None:
    _, version, python, abi, platform = wheel.name.removesuffix(".whl").split("-")
    assert version == sparsedraft.__version__
    assert (python, abi) == ("cp311", "abi3") and platform.startswith("manylinux")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".so")] == ["sparsedraft/native/_native.abi3.so"]
    assert not [name for name in names if "csrc" in name or name.startswith(("tests", "build"))]


def test_generate_runs_natively_without_a_compiler(installed: Path, made, tmp_path: Path) -> None:
    path = str(installed)
    assert [tool for tool in COMPILERS if shutil.which(tool, path=path)] == []
    environment = {"PATH": path, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    where = "from sparsedraft.native.extension import extension; print(extension().__file__)"
    assert Path(run(installed / "python", "-c", where, **environment).strip()).is_relative_to(installed.parent)
    folder = made("llama", True, "2:4", "int8")[1]
    options = ("--prompt", "Hello", "--runtime", "native", "--max-new-tokens", "8")
    result = json.loads(run(installed / "sparsedraft", "generate", folder, *options, **environment).splitlines()[-1])
    assert 0 < result["tokens"] <= 8
