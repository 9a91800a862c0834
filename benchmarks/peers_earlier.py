"""Our own int8 of commit 91ad1f9, before there was int4: built from the git history, run in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import CACHE, ROOT
from peers import Missing, finished
from peers_server import Answer
from sparsedraft.base.places import slug
from sparsedraft.models import checkpoint

COMMIT = "91ad1f9"
WORKER = Path(__file__).with_name("earlier_worker.py")


def checkout() -> Path:
    """The folder of that commit's sources with its extension built. Missing where the history or a compiler is not."""
    folder = CACHE / "earlier" / COMMIT
    if not folder.is_dir():
        cmake = shutil.which("cmake", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
        if not cmake:
            raise Missing("our earlier build needs cmake and a C++ compiler")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            tree = Path(work) / "tree"
            tree.mkdir()
            archive = Path(work) / "tree.tar"
            finished(["git", "-C", ROOT, "archive", "-o", archive, COMMIT, "src", "CMakeLists.txt", "pyproject.toml"])
            shutil.unpack_archive(archive, tree, filter="data")
            build = Path(work) / "build"
            print(f"building {COMMIT} (minutes, once)", file=sys.stderr)
            options = ["-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
            finished([cmake, "-S", tree, "-B", build, *options])
            finished([cmake, "--build", build, "-j", str(os.cpu_count())])
            (extension,) = build.glob("_native*.so")
            shutil.copy(extension, tree / "src" / "sparsedraft" / "runtime")
            tree.rename(folder)
    return folder


class Earlier:
    """That build with the int8 `target` and an int8 drafter, packed by itself; `close` ends it. Missing."""

    def __init__(self, target: str, drafter: str, threads: int) -> None:
        tree = checkout()
        self._environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": str(threads)}
        self.target, self.drafter = (self._packed(model) for model in (target, drafter))
        command = [sys.executable, WORKER, "serve", self.target, self.drafter, threads]
        self._process = subprocess.Popen(
            [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
        )
        self.bytes = int(self._said()["bytes"])

    def _packed(self, model: str) -> Path:
        out = CACHE / "earlier" / f"{COMMIT}-{slug(model.replace('/', '-'))}"
        if not out.is_dir():
            command: list[str | Path] = [sys.executable, WORKER, "pack", checkpoint.find(model), out]
            finished(command, PYTHONPATH=self._environment["PYTHONPATH"])
        return out

    def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            return json.loads(self._process.stdout.readline())
        except ValueError:
            self.close()
            raise Missing(f"our build of {COMMIT} ended: its last words stand above") from None

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._said()

    def decode(self, tokens: int, behind: int = 0) -> float:
        """Seconds of decoding `tokens` tokens behind so many others."""
        return float(self._ask(decode=tokens, behind=behind)["seconds"])

    def read(self, tokens: int) -> float:
        """Seconds of reading `tokens` tokens."""
        return float(self._ask(read=tokens)["seconds"])

    def answer(self, ids: Sequence[int], tokens: int, drafting: bool = True) -> Answer:
        """The greedy answer to `ids`, with the drafter under --policy auto, or alone."""
        found = self._ask(answer=list(ids), tokens=tokens, drafting=drafting)
        return Answer(found["tokens"], found["seconds"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
