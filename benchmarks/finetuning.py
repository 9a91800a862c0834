"""Fine-tuning: tokens/s against a bare forward + backward + step on the same token shape; peak memory against `plan`.

python benchmarks/finetuning.py [MODEL] [--only speed,memory]
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from common import GIB, MODEL, close, measured, row, seconds, setup
from sparsedraft.base.artifact import write_json
from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import count_zeros, decoder_linears
from sparsedraft.models.skeleton import skeleton
from sparsedraft.models.tokenizers import templates
from sparsedraft.stages.distill.datafolder import write
from sparsedraft.stages.finetune import loop, memory
from sparsedraft.stages.finetune.masks import masks_of
from sparsedraft.text import prompts
from sparsedraft.text.sample import Sample

LENGTH, STEPS = 512, 8


def samples(tokenizer) -> list[Sample]:
    """Demo prompts with a text of 80 tokens as the answer: the demo's shape."""
    answer = tokenizer("The quick brown fox jumps over the lazy dog and runs far away. " * 20)["input_ids"][:80]
    return [Sample(p.id, templates.chat_ids(tokenizer, p.messages()), answer) for p in prompts.read("demo:train")]


def bare(model) -> float:
    """Tokens/s of forward, backward and step with a loss on every token, and nothing else."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (1, LENGTH))

    def work() -> None:
        for _ in range(STEPS):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    model.train()
    work()
    return STEPS * LENGTH / seconds(work)


def ours(model, tokenizer) -> float:
    """Tokens/s of the training loop with a mask, from its own steps (validation and saving left out)."""
    with torch.no_grad():
        for linear in decoder_linears(model).values():
            linear.weight[:, ::2] = 0
    masks = masks_of(model, list(decoder_linears(model)))
    found = samples(tokenizer)
    settings = loop.Settings(
        tokens=2 * STEPS * LENGTH, learning_rate=1e-5, sequence_length=LENGTH, rows_per_step=1,
        validate_every=10**6, save_every=10**6,
    )  # fmt: skip
    import time

    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        loop.train(
            model, masks, found[8:], found[:8], settings, Path(folder),
            after_step=lambda step: marks.append(time.perf_counter()),
        )  # fmt: skip
    first, last = STEPS - 1, 2 * STEPS - 2  # after the warm-up, before the last step's validation
    return (last - first) * LENGTH * fill(found[8:]) / (marks[last] - marks[first])


def fill(found: list[Sample]) -> float:
    """Share of the packed rows that is not empty."""
    from sparsedraft.text.bins import first_fit

    lengths = [len(s) for s in found]
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


def peaks(model: str, tokenizer, rows_per_step: int = 2) -> list[dict]:
    """Peak resident memory of the command in a process of its own, and how near the formula comes, case by case."""
    found = samples(tokenizer)
    answers = sum(len(s.answer_ids) for s in found) / sum(map(len, found))
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drafter, rows = half(model, folder / "half"), data(tokenizer, folder / "data")
        options = ("--sequence-length", LENGTH, "--tokens", 2 * rows_per_step * LENGTH, "--validation-prompts", 4)
        for case, extra, changed in (
            ("float32", (), {}),
            ("checkpointed activations", ("--gradient-checkpointing",), {"gradient_checkpointing": True}),
            ("bfloat16", ("--dtype", "bfloat16"), {}),
        ):
            command = ("finetune", drafter, rows, "--out", folder / case, *map(str, options), *extra)
            _, gib = measured(*command, "--rows-per-step", str(rows_per_step))
            settings = loop.Settings(sequence_length=LENGTH, rows_per_step=rows_per_step, **changed)  # type: ignore[arg-type]
            predicted = memory.peak(
                skeleton(checkpoint.read_config(checkpoint.find(model))), settings,
                density=0.5, halves=case == "bfloat16", answers=answers,
            ) / GIB  # fmt: skip
            details: dict = {"gib": round(gib, 2), "predicted_gib": round(predicted, 2)}
            off = abs(predicted / gib - 1)
            lines.append(row(f"fine-tuning, {case}: plan's peak off by", off, 0.2, unit="", better="less", **details))
    return lines


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=MODEL)
    parser.add_argument("--only", default="speed,memory")
    chosen = parser.parse_args(arguments)
    tokenizer = checkpoint.load_tokenizer(chosen.model)
    lines: list[dict] = peaks(chosen.model, tokenizer) if "memory" in chosen.only else []
    if "speed" in chosen.only:
        reference = bare(checkpoint.load(chosen.model))
        reached = ours(checkpoint.load(chosen.model), tokenizer)
        details: dict = {"tokens_per_second": round(reached, 1), "bare_tokens_per_second": round(reference, 1)}
        lines.append(row("fine-tuning against a bare loop", reached / reference, 0.8, **details))
    return lines


if __name__ == "__main__":
    setup()
    close(main())
