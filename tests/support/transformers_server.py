"""A real `transformers serve` process on loopback, over a Hugging Face cache of tiny checkpoints."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import GenerationConfig

from sparsedraft.models.tokenizers import templates
from tiny import build_llama, build_tokenizer

COMMIT = "0" * 40
ASKED = [
    "how many apples are left?",
    "translate the sentence, then write it again",
    "the quick fox jumps over the dog?",
    "how many tokens in one pass?",
    "write it in simple words",
    "a drafter proposes tokens and the target",
    "when three of ten are eaten?",
    "thank you! write again",
]
ANSWERS = ["the quick brown fox", "a sparse drafter", "seven apples are left.", "thank you!"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT.pop("OPENAI_API_KEY", None)


def build_talker(folder: Path) -> Path:
    """A checkpoint that has learnt ASKED and to answer them with ANSWERS, in text that is spelt as the tokenizer would.

    Its own generation settings ask for sampling, without which `transformers serve` heeds no temperature.
    """
    model, tokenizer = build_llama(seed=1, layers=2, initializer_range=0.05), build_tokenizer()
    rows = []
    for first in range(len(ASKED)):
        chat = []
        for turn in (first, first + 3):
            chat.append({"role": "user", "content": ASKED[turn % len(ASKED)]})
            chat.append({"role": "assistant", "content": ANSWERS[turn % len(ANSWERS)]})
        rows.append(torch.tensor([templates.chat_ids(tokenizer, chat, generation_prompt=False)]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(160):
        ids = rows[step % len(rows)]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    model.generation_config = GenerationConfig(do_sample=True, top_k=0, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(models: Mapping[str, Path], folder: Path) -> Iterator[str]:
    """The address (".../v1") of a server of `models`, by name; `folder` is its own."""
    for name, source in models.items():
        cached = folder / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(source, cached / "snapshots" / COMMIT)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(COMMIT)
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--model-timeout", "-1"],
            env={**ENVIRONMENT, "HF_HOME": str(folder)},
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, folder / "server.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.URLError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])
