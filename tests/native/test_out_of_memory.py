"""Memory that runs out in the native engine, whichever thread asks for it: MemoryError, and what was there is whole."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forks import Fork
from places import ROOT
from sparsedraft.base.errors import UserError
from sparsedraft.cli import guarded
from sparsedraft.native import extension as native
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Engine, Session, shared_pool
from tiny import build_llama

COMPILER = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
BUILT = native.is_built()
LINUX = pytest.mark.skipif(not BUILT or sys.platform != "linux", reason="needs the extension, and Linux's limits")

CACHES = 10, 20, 30, 40, 50  # MB: it runs out in this layer's cache or that one's, and in what follows


def within(megabytes: int | None) -> None:
    """This process may take so many MB more than it has; None: as many as there are."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = resource.RLIM_INFINITY if megabytes is None else pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def rows_that_take_too_much() -> None:
    """The cache of a native model, in the folder of sys.argv, grows beyond the memory, again and again."""
    model = native_model(Path(sys.argv[1]))
    rows, alone = Session(model, 2, threads=1), Engine(model, threads=1)
    text = [*range(5, 40)]
    rows.forward([text, [7, 8]], [0, 0])
    alone.forward(text, 0)
    long = [3] * 100_000
    for megabytes in CACHES:
        within(megabytes)
        try:
            rows.forward([long, []], [1, 0])
            sys.exit("there was memory")
        except MemoryError:
            within(None)
        assert rows.lengths == [len(text), 2]
    found, expected = rows.forward([[9, 11], [12]], [2, 1]), alone.forward([9, 11], 2)
    assert torch.equal(found[0], expected)
    print("whole")


def too_many_threads() -> None:
    native.cores = lambda: 200
    within(100)
    try:
        shared_pool(200)
    except UserError as error:
        print(error)


def said(folder: Path, work: Callable[[], None], *words: object) -> str:
    """What `work` prints in a process of its own, which must end well."""
    out, err = folder / "stdout", folder / "stderr"
    process = Fork(*words, stdout=out, stderr=err, main=work)
    assert process.wait(timeout=300) == 0, err.read_text()
    return out.read_text()


@LINUX
def test_what_was_read_is_still_there(tmp_path: Path) -> None:
    build_llama(layers=3, max_position_embeddings=200_000).save_pretrained(tmp_path / "model")
    assert said(tmp_path, rows_that_take_too_much, tmp_path / "model") == "whole\n"


@LINUX
def test_threads_that_cannot_be_started(tmp_path: Path) -> None:
    assert said(tmp_path, too_many_threads).startswith("200 threads cannot be started (")


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_what_a_thread_throws_reaches_the_caller(tmp_path: Path) -> None:
    program = tmp_path / "check"
    source, include = ROOT / "tests" / "native" / "pool_check.cpp", ROOT / "src" / "sparsedraft" / "native" / "csrc"
    subprocess.run(
        [COMPILER, "-std=c++20", "-O1", "-pthread", f"-I{include}", source, "-o", program],
        check=True,
    )
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "sound\n")


def raises(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("how", ["python", "torch", "device", "mapping", "system"])
def test_the_command_line_says_it_in_a_sentence(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    work = {
        "python": lambda: bytearray(1 << 60),
        "torch": lambda: torch.empty(1 << 55, dtype=torch.uint8),
        "device": lambda: raises(torch.OutOfMemoryError("CUDA out of memory")),
        "mapping": lambda: raises(
            RuntimeError(f"unable to mmap 9 bytes from file <f>: {os.strerror(errno.ENOMEM)} (12)")
        ),
        "system": lambda: raises(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "file")),
    }[how]
    assert guarded(work) == 2
    assert "there is not enough memory: close something, or ask for less at once" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="something else"):
        guarded(lambda: raises(RuntimeError("something else")))
