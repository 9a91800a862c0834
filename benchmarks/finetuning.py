"""Fine-tuning: tokens/s against a bare forward + backward + step on the same token shape; peak memory against `plan`.

    python benchmarks/finetuning.py [MODEL] [--only speed,memory]

About 10 minutes.
"""

import argparse
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from common import GIB, MODEL, measured, parser, run, seconds
from finetuning_earlier import COMMIT, compare
from peers import Missing
from record import Table
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import count_zeros, decoder_linears
from sparsedraft.models.skeleton import skeleton
from sparsedraft.models.tokenizers import templates
from sparsedraft.stages.distill.datafolder import write
from sparsedraft.stages.finetune import loop, memory
from sparsedraft.stages.finetune.masks import masks_of
from sparsedraft.text import dataset, prompts
from sparsedraft.text.bins import first_fit, truncate
from sparsedraft.text.sample import Sample

LENGTH = 512  # tokens of a row
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {  # options of the command, and of the formula
    "float32": (("--dtype", "float32"), {}),
    "checkpointed activations": (
        ("--dtype", "float32", "--gradient-checkpointing"),
        {"gradient_checkpointing": True},
    ),
    "bfloat16": (("--dtype", "bfloat16"), {}),
}


def samples(tokenizer) -> list[Sample]:
    """Demo prompts with a text of 80 tokens as the answer: the demo's shape."""
    answer = tokenizer("The quick brown fox jumps over the lazy dog and runs far away. " * 20)["input_ids"][:80]
    return [Sample(p.id, templates.chat_ids(tokenizer, p.messages()), answer) for p in prompts.read("demo:train")]


def bare(model, steps: int) -> float:
    """Tokens/s of forward, backward and step with a loss on every token, and nothing else."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (1, LENGTH))

    def work() -> None:
        for _ in range(steps):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    model.train()
    work()  # warm-up
    return steps * LENGTH / seconds(work)


def ours(model, tokenizer, steps: int) -> float:
    """Tokens/s of the training loop with a mask, from its own steps (validation and saving left out)."""
    with torch.no_grad():
        for linear in decoder_linears(model).values():
            linear.weight[:, ::2] = 0
    masks = masks_of(model, list(decoder_linears(model)))
    rows = samples(tokenizer)
    training, validation = rows[8:], rows[:8]
    settings = loop.Settings(
        tokens=2 * steps * LENGTH, learning_rate=1e-5, sequence_length=LENGTH, rows_per_step=1,
        validate_every=10**6, save_every=10**6,
    )  # fmt: skip
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        loop.train(
            loop.Task(model, masks, training, validation),
            settings,
            Path(folder),
            after_step=lambda step: marks.append(time.perf_counter()),
        )
    first, last = steps - 1, 2 * steps - 2  # after the warm-up, before the last step's validation
    return (last - first) * LENGTH * fill(training) / (marks[last] - marks[first])


def fill(rows: list[Sample]) -> float:
    """Share of the packed rows that is not empty."""
    lengths = [len(row) for row in rows]
    return sum(lengths) / (len(first_fit(lengths, LENGTH)) * LENGTH)


def half(model: str, folder: Path) -> Path:
    """The model with the smaller half of each linear's weights zeroed, as a checkpoint that claims it."""
    loaded = checkpoint.load(model)
    linears = decoder_linears(loaded)
    with torch.no_grad():
        for linear in linears.values():
            linear.weight.mul_(keep_mask(Pattern(), linear.weight.abs(), 0.5))
    zeros = {name: count_zeros(linear.weight.detach()) for name, linear in linears.items()}
    claim = {"pattern": "unstructured", "sparsity": 0.5, "linears": zeros}
    checkpoint.save(loaded, checkpoint.load_tokenizer(model), folder, sparsity=claim)
    return folder


def data(tokenizer, folder: Path) -> Path:
    """`samples` as a distilled data folder."""
    tokenizer.save_pretrained(folder / "tokenizer")
    rows: list[dict[str, Any]] = [
        {
            "id": s.id, "prompt_id": s.id, "category": "", "turn": 0, "sample": 0, "messages": [],
            "prompt_ids": s.prompt_ids, "answer_ids": s.answer_ids, "finish_reason": "length", "seed": 0,
            "topk_ids": [], "topk_logprobs": [], "mode": "respond", "source": "target", "note": "",
            "engine": "transformers", "temperature": 0.0,
        }
        for s in samples(tokenizer)
    ]  # fmt: skip
    write_json(folder / "result.json", write(folder, rows, lambda row: "", len(rows), 0))
    return folder


def peaks(model: str, tokenizer, cases: list[str], table: Table, rows_per_step: int = 2) -> None:
    """Peak resident memory of the command in a process of its own, and how near the formula comes, case by case."""
    rows = samples(tokenizer)
    answers = sum(len(row.answer_ids) for row in rows) / sum(map(len, rows))
    shapes = skeleton(checkpoint.read_config(checkpoint.find(model)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command: list[str | Path] = ["finetune", half(model, folder / "half"), data(tokenizer, folder / "data")]
        command += ["--sequence-length", str(LENGTH), "--tokens", str(2 * rows_per_step * LENGTH)]
        command += ["--validation-prompts", "4", "--rows-per-step", str(rows_per_step)]
        for case in cases:
            more, changes = CASES[case]
            _, gib = measured(*command, "--out", folder / case, *more)
            settings = loop.Settings(sequence_length=LENGTH, rows_per_step=rows_per_step, **changes)
            halves = case == "bfloat16"
            predicted = memory.peak(shapes, settings, density=0.5, halves=halves, answers=answers) / GIB
            figures: dict[str, Any] = {"gib": round(gib, 2), "predicted_gib": round(predicted, 2)}
            table.limit(f"fine-tuning, {case}: plan's peak off by", abs(predicted / gib - 1), 0.2, **figures)


def against_earlier(model: str, rows: list[Sample], threads: int, steps: int, table: Table) -> None:
    """The default, float32, and bfloat16 against commit fff1e69: speed, memory, losses."""
    settings = {
        "sequence_length": LENGTH, "rows_per_step": 2, "learning_rate": 1e-5, "validate_every": 10**6,
        "save_every": 10**6,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        checkpoint = half(model, Path(name) / "half")
        for dtype, what in (("float32", ""), ("bfloat16", ", bfloat16")):
            found = compare(checkpoint, rows, settings, dtype, threads, steps)
            apart = max(abs(a - b) for a, b in zip(*found.losses, strict=True))
            table.ratio(
                f"fine-tuning{what}, tokens/s / before", found.ratio, 1.8,
                ratios=[round(ratio, 2) for ratio in found.ratios],
                seconds_a_step=[round(value, 2) for value in found.seconds],
                losses=[[round(loss, 4) for loss in curve] for curve in found.losses],
            )  # fmt: skip
            table.limit(f"fine-tuning{what}: peak memory / before", found.gib[0] / found.gib[1], 1.0)
            table.note(f"fine-tuning{what}: largest difference of a step's loss", apart)


def work(options: argparse.Namespace, table: Table) -> None:
    tokenizer = checkpoint.load_tokenizer(options.model)
    cases, steps = (["bfloat16"], 2) if options.quick else ([*CASES], 8)
    if "memory" in options.only:
        peaks(options.model, tokenizer, cases, table)
    if "speed" in options.only:
        reference = bare(checkpoint.load(options.model), steps)
        reached = ours(checkpoint.load(options.model), tokenizer, steps)
        figures = {"tokens_per_second": round(reached, 1), "bare_tokens_per_second": round(reference, 1)}
        table.ratio("fine-tuning / a bare loop", reached / reference, 0.8, **figures)
    if "earlier" in options.only:
        rows = samples(tokenizer)
        if options.data:
            rows = [*islice(dataset.samples(options.data, tokenizer), 8 * (steps + 2))]
            rows, _ = truncate(rows, LENGTH)
        try:
            against_earlier(options.model, rows, options.threads, steps, table)
        except Missing as missing:
            print(f"not compared with {COMMIT}: {missing}", file=sys.stderr)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("model", nargs="?", default=MODEL)
    arguments.add_argument("--only", default="speed,memory,earlier")
    arguments.add_argument("--data", type=Path)
    run("finetuning", arguments.parse_args(), work)
