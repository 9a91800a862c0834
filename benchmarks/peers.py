"""What users would take instead: transformers' assisted generation, llama.cpp and OpenVINO GenAI.

llama.cpp is built from the sources that the PyPI package llama-cpp-python brings, OpenVINO GenAI is installed in an
environment of its own; both lie in the cache folder and are made once. `Missing` says what cannot be had here.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from common import CACHE
from sparsedraft.base.places import slug
from sparsedraft.models import checkpoint

LLAMA = "llama-cpp-python==0.3.36"
SENTENCEPIECE = "sentencepiece>=0.1.98,<0.3"  # as llama.cpp's own requirements have it
PROGRAMS = ("llama-bench", "llama-quantize", "llama-speculative-simple")
OPENVINO = ("openvino-genai", "optimum-intel[openvino]")
OPENVINO_CODE = """
import json, sys, time
import openvino_genai as ov
pipe = ov.LLMPipeline(sys.argv[1], "CPU", INFERENCE_NUM_THREADS=int(sys.argv[2]))
how = ov.GenerationConfig(max_new_tokens=int(sys.argv[3]), min_new_tokens=int(sys.argv[3]), do_sample=False)
how.ignore_eos = True
pipe.generate("Hello", how)
rates = []
for _ in range(3):
    rates.append(1000 / pipe.generate(["Write a long story about a fox."], how).perf_metrics.get_tpot().mean)
print(json.dumps(sorted(rates)[1]))
"""

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


@dataclass(frozen=True)
class Llama:
    """llama.cpp's programs, and the pair as GGUF: both in Q8_0, the drafter also in Q4_K_M."""

    programs: Path
    target: Path
    drafter: Path
    small: Path

    @classmethod
    def build(cls, target: str, drafter: str) -> "Llama":
        """Build or find in the cache. Missing where the sources, a compiler or a conversion fails."""
        sources = _llama_sources()
        programs = sources / "build" / "bin"
        if not all((programs / name).is_file() for name in PROGRAMS):
            bins = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
            cmake = shutil.which("cmake", path=bins)  # pip's, beside this Python, or the system's
            if not (cmake and shutil.which("c++")):
                raise Missing("llama.cpp needs cmake and a C++ compiler")
            configure = [cmake, "-S", str(sources), "-B", str(sources / "build"), "-DCMAKE_BUILD_TYPE=Release"]
            off = [f"-DLLAMA_{part}=OFF" for part in ("CURL", "BUILD_TESTS", "BUILD_SERVER", "BUILD_UI")]
            _run([*configure, *off, "-DBUILD_SHARED_LIBS=OFF"])
            _run([cmake, "--build", sources / "build", "-j", str(os.cpu_count()), "--target", *PROGRAMS])
        whole, fast = (_gguf(sources, programs, model, "Q8_0") for model in (target, drafter))
        return cls(programs, whole, fast, _gguf(sources, programs, drafter, "Q4_K_M"))

    def rate(self, model: Path, threads: int, tokens: int) -> float:
        """llama-bench's tokens a second of `tokens` decoded ones."""
        size = ["-p", "0", "-n", str(tokens), "-r", "3", "-o", "json"]
        printed = _run([self.programs / "llama-bench", "-m", model, "-t", str(threads), *size])
        return _figure("llama-bench", lambda: float(json.loads(printed.stdout)[0]["avg_ts"]))

    def speculation(self, texts: Sequence[str], k: int, tokens: int, threads: int) -> tuple[float, float]:
        """(tokens a second of whole answers, tokens a step) of greedy speculative decoding in Q8_0.

        `texts`: prompts with the chat template around them.
        """
        total = steps = seconds = 0.0
        how = ["--temp", "0", "--spec-type", "draft-simple", "--spec-draft-n-max", str(k), "-c", "2048"]
        how += ["-n", str(tokens), "-t", str(threads)]
        program = self.programs / "llama-speculative-simple"
        for text in texts:
            with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as prompt:
                prompt.write(text)
                prompt.flush()
                done = _run([program, "-m", self.target, "-md", self.drafter, "-f", prompt.name, *how])
            printed = done.stdout + done.stderr
            count, accepted, taken = _figure(program.name, partial(speculated, printed))
            total, steps, seconds = total + count, steps + count - accepted, seconds + taken
        return total / seconds, total / steps


def speculated(printed: str) -> tuple[int, int, float]:
    """(tokens, accepted drafts, seconds with the prompt's reading) as llama-speculative-simple prints them."""
    times = re.findall(r"(?:encoded|decoded)\s+(\d+) tokens in\s+([\d.]+) seconds", printed)
    (_, reading), (count, writing) = times
    return int(count), int(re.findall(r"n_accept\s*=\s*(\d+)", printed)[0]), float(reading) + float(writing)


def _llama_sources() -> Path:
    """The folder of llama.cpp's sources, unpacked from the PyPI package."""
    name, version = LLAMA.split("==")
    folder = CACHE / "llama.cpp" / f"{name.replace('-', '_')}-{version}"
    if not (folder / "unpacked").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        archive = folder.parent / f"{folder.name}.tar.gz"
        if not archive.is_file():
            with tempfile.TemporaryDirectory(dir=folder.parent) as download:
                # pip makes an environment for the sources' metadata: with --no-binary :all: it would build that, too
                pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name]
                _run([*pip, "-d", download, LLAMA])
                (Path(download) / archive.name).rename(archive)
        with tarfile.open(archive) as packed:
            packed.extractall(folder.parent, filter="data")
        (folder / "unpacked").touch()
    return folder / "vendor" / "llama.cpp"


def _gguf(sources: Path, programs: Path, model: str, kind: str) -> Path:
    """`model` as a GGUF file of this kind, made once by llama.cpp's own scripts and programs."""
    folder = CACHE / "gguf" / slug(model.replace("/", "-"))
    file, whole = folder / f"{kind}.gguf", folder / "f16.gguf"
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    if not whole.is_file():
        partial = folder / "partial.gguf"
        convert: list[str | Path] = [sys.executable, sources / "convert_hf_to_gguf.py", checkpoint.find(model)]
        path = os.pathsep.join(map(str, (sources / "gguf-py", _sentencepiece())))
        _run([*convert, "--outtype", "f16", "--outfile", partial], PYTHONPATH=path)
        partial.rename(whole)
    partial = folder / f"{kind}.partial.gguf"
    _run([programs / "llama-quantize", whole, partial, kind])
    return partial.rename(file)


def _sentencepiece() -> Path:
    """A folder with the library that the conversion imports for every model, whether or not its tokenizer needs it."""
    folder = CACHE / "llama.cpp" / "python"
    if not (folder / "installed").is_file():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade"]
        _run([*pip, "--target", folder, SENTENCEPIECE])
        (folder / "installed").touch()
    return folder


def openvino(model: str) -> tuple[Path, Path]:
    """(an interpreter with OpenVINO GenAI, the folder of `model` in its int8); installed and exported once. Missing."""
    environment = CACHE / "openvino"
    python, export = environment / "bin" / "python", environment / slug(model.replace("/", "-"))
    if not (environment / "installed").is_file():
        _run([sys.executable, "-m", "venv", environment])
        _install_with_torch(python, OPENVINO)
        (environment / "installed").touch()
    if not export.is_dir():
        partial = export.with_name(f"{export.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        command: list[str | Path] = [
            environment / "bin" / "optimum-cli",
            "export",
            "openvino",
            "-m",
            checkpoint.find(model),
        ]
        _run([*command, "--task", "text-generation-with-past", "--weight-format", "int8", partial])
        partial.rename(export)
    return python, export


def _install_with_torch(python: Path, packages: Sequence[str]) -> None:
    """`packages` into the environment of `python`, with torch of our own version: a CPU build where there is one.

    One call of pip for all, so that it cannot put another build of torch in the place of this one.
    """
    version = torch.__version__.partition("+")[0]
    index = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
    pip: list[str | Path] = [python, "-m", "pip", "install", "-q", *packages]
    for build in ([f"torch=={version}+cpu"], [f"torch=={version}+cpu", *index]):
        with contextlib.suppress(Missing):
            _run([*pip, *build])
            return
    _run([*pip, f"torch=={version}"])


def openvino_rate(python: Path, folder: Path, threads: int, tokens: int = 48) -> float:
    """Tokens a second of OpenVINO GenAI's decoding, the prompt's reading left out; the median of 3 answers."""
    done = _run([python, "-c", OPENVINO_CODE, folder, str(threads), str(tokens)])
    return _figure("OpenVINO GenAI", lambda: float(json.loads(done.stdout.splitlines()[-1])))


def _figure(program: str, read: Callable[[], Figure]) -> Figure:
    """What `read` finds in the program's output. Missing where it is not there."""
    try:
        return read()
    except (ValueError, LookupError):
        raise Missing(f"{program} printed no figures") from None


def _run(command: Sequence[str | Path], **variables: str) -> "subprocess.CompletedProcess[str]":
    """The finished command. Missing, with its last line, where it fails."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise Missing(f"{Path(command[0]).name} ended with {done.returncode} ({last[:200]})")
    return done
