"""onnxruntime-genai, in an environment of its own: its decoding of a model that its builder has made int4."""

import json
import shutil
import sys
from pathlib import Path

import transformers

from common import CACHE
from peers import figure, finished, with_torch
from sparsedraft.base.places import slug
from sparsedraft.models import checkpoint

PACKAGES = ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0")
CODE = """
import json, sys, time
import onnxruntime_genai as og
config = og.Config(sys.argv[1])
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": int(sys.argv[2])}}}}))
model = og.Model(config)
count = int(sys.argv[3])
rates = []
for _ in range(4):
    how = og.GeneratorParams(model)
    how.set_search_options(min_length=count + 1, max_length=count + 1, do_sample=False)
    generator = og.Generator(model, how)
    generator.append_tokens([7])
    start = time.perf_counter()
    for _ in range(count):
        generator.generate_next_token()
    rates.append(count / (time.perf_counter() - start))
print(json.dumps(sorted(rates[1:])[1]))
"""


def exported(model: str) -> tuple[Path, Path]:
    """(an interpreter with onnxruntime-genai, the folder of `model` in its int4); made once. Missing."""
    environment = CACHE / "onnx"
    python, export = environment / "bin" / "python", environment / slug(model.replace("/", "-"))
    if not (environment / "installed").is_file():
        finished([sys.executable, "-m", "venv", environment])
        with_torch(python, [*PACKAGES, f"transformers=={transformers.__version__}"])
        (environment / "installed").touch()
    if not export.is_dir():
        partial = export.with_name(f"{export.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        build: list[str | Path] = [python, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint.find(model)]
        finished([*build, "-o", partial, "-p", "int4", "-e", "cpu", "-c", environment / "scratch"])
        partial.rename(export)
    return python, export


def rate(python: Path, folder: Path, threads: int, tokens: int) -> float:
    """Tokens a second of decoding from an empty context; the median of 3 texts, another one before them."""
    done = finished([python, "-c", CODE, folder, str(threads), str(tokens)])
    return figure("onnxruntime-genai", lambda: float(json.loads(done.stdout.splitlines()[-1])))
