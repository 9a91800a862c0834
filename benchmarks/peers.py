"""What users would take instead of this engine: how such a peer is fetched, built and run in the cache folder, once.

`Missing` says what cannot be had here. Each peer has a file of its own, peers_llama and so on.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

Figure = TypeVar("Figure")


class Missing(Exception):
    """One sentence: what a peer lacks on this machine."""


def assisted(target: Any, drafter: Any, ids: list[int], k: int, tokens: int, **tokenizers: Any) -> list[int]:
    """The answer of transformers' assisted generation: constant K, no confidence stop.

    `tokenizers`: those of a pair that has two.
    """
    config = drafter.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = k, "constant"
    config.assistant_confidence_threshold = 0.0
    prompt = torch.tensor([ids])
    out: Any = target.generate(prompt, assistant_model=drafter, max_new_tokens=tokens, do_sample=False, **tokenizers)
    return out[0, len(ids) :].tolist()


def sources(requirement: str, folder: Path, tree: str = "") -> Path:
    """The part `tree` of the sources that the package `requirement` (NAME==VERSION) has on PyPI, unpacked in `folder`.

    Missing where they cannot be fetched.
    """
    unpacked = folder / requirement.replace("==", "-")
    if not unpacked.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            # pip makes an environment for the sources' metadata: with --no-binary :all: it would build that, too
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary"]
            finished([*pip, requirement.partition("==")[0], "-d", work, requirement])
            (archive,) = Path(work).glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                packed.extractall(Path(work) / "tree", filter="data")
            (whole,) = (Path(work) / "tree").iterdir()
            whole.rename(unpacked)
    return unpacked / tree


def built(tree: Path, options: Sequence[str], targets: Sequence[str]) -> Path:
    """The folder of the programs `targets`, built by cmake from the sources `tree`. Missing where that fails."""
    build = tree / "build"
    if not (build / "complete").is_file() or not all((build / "bin" / name).is_file() for name in targets):
        bins = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        cmake = shutil.which("cmake", path=bins)  # pip's, beside this Python, or the system's
        if not (cmake and shutil.which("c++")):
            raise Missing(f"{tree.name} needs cmake and a C++ compiler")
        print(f"building {tree.name} (minutes, once)", file=sys.stderr)
        finished([cmake, "-S", tree, "-B", build, "-DCMAKE_BUILD_TYPE=Release", *options])
        finished([cmake, "--build", build, "-j", str(os.cpu_count()), "--target", *targets])
        (build / "complete").touch()
    return build / "bin"


def with_torch(python: Path, packages: Sequence[str]) -> None:
    """`packages` into the environment of `python`, with torch of our own version: a CPU build where there is one.

    One call of pip for all, so that it cannot put another build of torch in the place of this one.
    """
    version = torch.__version__.partition("+")[0]
    index = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
    pip: list[str | Path] = [python, "-m", "pip", "install", "-q", *packages]
    for build in ([f"torch=={version}+cpu"], [f"torch=={version}+cpu", *index]):
        try:
            finished([*pip, *build])
            return
        except Missing:
            continue
    finished([*pip, f"torch=={version}"])


def figure(program: str, read: Callable[[], Figure]) -> Figure:
    """What `read` finds in the program's output. Missing where it is not there."""
    try:
        return read()
    except (ValueError, LookupError, TypeError):
        raise Missing(f"{program} printed no figures") from None


def finished(command: Sequence[str | Path], **variables: str) -> "subprocess.CompletedProcess[str]":
    """The finished command. Missing, with its last line, where it fails."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise Missing(f"{Path(command[0]).name} ended with {done.returncode} ({last[:200]})")
    return done
