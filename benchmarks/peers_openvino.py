"""OpenVINO GenAI, in an environment of its own: its decoding of a model that it has made int8 or int4 itself."""

import json
import shutil
import sys
from pathlib import Path

from common import CACHE
from peers import figure, finished, with_torch
from sparsedraft.base.places import slug
from sparsedraft.models import checkpoint

PACKAGES = ("openvino-genai", "optimum-intel[openvino]")
CODE = """
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


def exported(model: str, weights: str = "int8") -> tuple[Path, Path]:
    """(an interpreter with OpenVINO GenAI, the folder of `model` in its int8 or int4); made once. Missing."""
    environment = CACHE / "openvino"
    name = slug(model.replace("/", "-")) + ("" if weights == "int8" else f"-{weights}")
    python, export = environment / "bin" / "python", environment / name
    if not (environment / "installed").is_file():
        finished([sys.executable, "-m", "venv", environment])
        with_torch(python, PACKAGES)
        (environment / "installed").touch()
    if not export.is_dir():
        partial = export.with_name(f"{export.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        command: list[str | Path] = [environment / "bin" / "optimum-cli", "export", "openvino"]
        command += ["-m", checkpoint.find(model), "--task", "text-generation-with-past", "--weight-format", weights]
        finished([*command, partial])
        partial.rename(export)
    return python, export


def rate(python: Path, folder: Path, threads: int, tokens: int = 48) -> float:
    """Tokens a second of OpenVINO GenAI's decoding, the prompt's reading left out; the median of 3 answers."""
    done = finished([python, "-c", CODE, folder, str(threads), str(tokens)])
    return figure("OpenVINO GenAI", lambda: float(json.loads(done.stdout.splitlines()[-1])))
