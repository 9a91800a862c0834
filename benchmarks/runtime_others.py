"""What users would take instead: llama.cpp and OpenVINO, installed outside of the project (a part of runtime.py).

llama.cpp: a folder with llama-bench and llama-speculative-simple, and GGUF files of target and drafter. OpenVINO: the
interpreter of an environment with openvino-genai, and a folder of the exported drafter.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

OPENVINO = """
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


def openvino_rate(python: str, folder: Path, threads: int, new: int = 48) -> float:
    """Tokens a second of OpenVINO GenAI's decoding, the prompt's reading left out; the median of 3 answers."""
    done = _run([python, "-c", OPENVINO, str(folder), str(threads), str(new)])
    return float(json.loads(done.stdout.splitlines()[-1]))


def llama_rate(binaries: Path, model: Path, threads: int, tokens: int = 0, new: int = 0) -> float:
    """llama-bench's tokens a second: of `new` decoded ones, or of a prompt of `tokens`."""
    size = ["-p", str(tokens), "-n", str(new)]
    done = _run([str(binaries / "llama-bench"), "-m", str(model), "-t", str(threads), *size, "-r", "3", "-o", "json"])
    return float(json.loads(done.stdout)[0]["avg_ts"])


def llama_speculation(
    binaries: Path, target: Path, drafter: Path, asked: Sequence[str], k: int, new: int, threads: int
) -> tuple[float, float]:
    """(tokens a second of whole answers, tokens a step) of llama.cpp's speculative decoding, greedy.

    `asked`: prompts with the chat template around them.
    """
    tokens = steps = seconds = 0.0
    for text in asked:
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as prompt:
            prompt.write(text)
            prompt.flush()
            how = ["--temp", "0", "--spec-type", "draft-simple", "--spec-draft-n-max", str(k), "-c", "2048"]
            done = _run(
                [str(binaries / "llama-speculative-simple"), "-m", str(target), "-md", str(drafter), "-f", prompt.name,
                 "-n", str(new), "-t", str(threads), *how]
            )  # fmt: skip
        printed = done.stdout + done.stderr
        parts = re.findall(r"(?:encoded|decoded)\s+(\d+) tokens in\s+([\d.]+) seconds", printed)
        (_, read), (count, wrote) = parts
        accepted = int(re.findall(r"n_accept\s*=\s*(\d+)", printed)[0])
        tokens, seconds, steps = (
            tokens + int(count),
            seconds + float(read) + float(wrote),
            steps + int(count) - accepted,
        )
    return tokens / seconds, tokens / steps


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    return done
