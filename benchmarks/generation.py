"""Data generation: batched and refilled, against one prompt at a time; same prompts, same engine, same run.

    python benchmarks/generation.py [--quick]

About 3 minutes.
"""

import argparse
from typing import Any

from common import MODEL, parser, run, seconds
from record import Table
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.text import prompts
from sparsedraft.writers.protocol.requests import Request
from sparsedraft.writers.transformers.completions import complete_all


def rate(model: Any, requests: list[Request], batch_size: int, eos_ids: frozenset[int]) -> float:
    """Tokens a second of the answers to `requests`."""
    how: dict[str, Any] = {"sampling": Sampling(), "eos_ids": eos_ids, "top_k_logprobs": 0}
    written = 0

    def write() -> None:
        nonlocal written
        for output in complete_all(model, requests, batch_size=batch_size, **how):
            written += len(output.token_ids)

    taken = seconds(write)
    return written / taken


def work(options: argparse.Namespace, table: Table) -> None:
    count, length, batch = (16, 24, 8) if options.quick else (96, 128, 48)
    model, tokenizer = checkpoint.load(MODEL), checkpoint.load_tokenizer(MODEL)
    eos_ids = end_ids(checkpoint.find(MODEL), tokenizer)
    requests = [
        Request(prompt.id, templates.chat_ids(tokenizer, prompt.messages()), length)
        for prompt in prompts.read("demo:train")[:count]
    ]
    rate(model, requests[:4], 4, eos_ids)  # warm-up
    alone = rate(model, requests[::8], 1, eos_ids)  # every eighth prompt: tokens/s does not need them all
    batched = rate(model, requests, batch, eos_ids)
    figures = {"tokens_per_second": round(batched, 1), "alone_tokens_per_second": round(alone, 1)}
    table.ratio("data generation, batched / one prompt at a time", batched / alone, 5, **figures)


if __name__ == "__main__":
    run("generation", parser(__doc__).parse_args(), work)
