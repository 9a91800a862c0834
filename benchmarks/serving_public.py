"""AIPerf (NVIDIA's successor of GenAI-Perf), in an environment of its own: a public tool's figures of our server.

It installs from PyPI without torch or CUDA, 1.2 GB in all. GuideLLM brings torch, whose wheel on PyPI is for CUDA; and
vLLM, for `vllm bench serve`, brings that and kernels of its own.
"""

import json
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import CACHE
from peers import figure, finished
from serving_own import NAME
from sparsedraft.models import checkpoint

PACKAGE = "aiperf==0.13.0"
CLIENTS = 4
READ, WRITTEN = 64, 64  # tokens of a made prompt, and of an answer at most
FIGURES = {  # of the tool, and what each is called here
    "output_token_throughput": "tokens/s",
    "request_throughput": "requests/s",
    "time_to_first_token": "first token",
    "inter_token_latency": "between two tokens",
    "request_latency": "whole answer",
}


def installed() -> Path:
    """The tool's program, installed once. Missing where it cannot be."""
    environment = CACHE / "aiperf"
    if not (environment / "installed").is_file():
        print("installing AIPerf (a minute, once)", file=sys.stderr)
        finished([sys.executable, "-m", "venv", environment])
        finished([environment / "bin" / "pip", "install", "-q", "--only-binary", ":all:", PACKAGE])
        (environment / "installed").touch()
    return environment / "bin" / "aiperf"


def profile(address: str, tokenizer: Path, requests: int, folder: Path) -> dict[str, Any]:
    """What the tool reports of so many streamed chats of CLIENTS clients at once. Missing where it fails."""
    how: list[str | Path] = [installed(), "profile", "--model", NAME, "--url", address, "--endpoint-type", "chat"]
    how += ["--streaming", "--concurrency", str(CLIENTS), "--request-count", str(requests), "--tokenizer", tokenizer]
    how += ["--prompt-input-tokens-mean", str(READ), "--prompt-output-tokens-mean", str(WRITTEN)]
    how += ["--use-server-token-count", "--extra-inputs", "temperature:0", "--random-seed", "0"]
    how += ["--no-gpu-telemetry", "--no-server-metrics", "--ui", "none", "--output-artifact-dir", folder]
    finished(how)  # not with HF_HUB_OFFLINE, by which the tool finds no tokenizer in a folder
    return figure("AIPerf", lambda: read(next(folder.rglob("profile_export_aiperf.json")).read_text(encoding="utf-8")))


def read(text: str) -> dict[str, Any]:
    """The figures in the tool's report: average and 99th percentile by name. LookupError where one is not there."""
    report = json.loads(text)
    return {
        label: {key: report[name][key] for key in ("unit", "avg", "p99") if key in report[name]}
        for name, label in FIGURES.items()
    }


def public(bench: Any) -> None:
    """What AIPerf says of our server; no goal."""
    requests = 8 if bench.options.quick else 48
    tokenizer = checkpoint.find(bench.models.target)
    with closing(bench.served(CLIENTS, bench.drafter)) as served, TemporaryDirectory() as folder:
        found = profile(served.address, tokenizer, requests, Path(folder))
    rate = found.pop("tokens/s")
    bench.table.note(f"public: AIPerf, {CLIENTS} clients, tokens/s", rate["avg"], requests=requests, **found)
