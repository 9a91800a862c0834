"""Fine-tuning tokens/s against a bare forward + backward + step of the same model on the same token shape."""

import tempfile
from pathlib import Path

import torch

from common import MODEL, close, row, seconds, setup
from sparsedraft import checkpoint, prompts
from sparsedraft.decoder import decoder_linears
from sparsedraft.finetune import loop
from sparsedraft.finetune.masks import masks_of
from sparsedraft.packing import Sample

LENGTH, STEPS = 512, 8


def samples(tokenizer) -> list[Sample]:
    """Demo prompts with a text of 80 tokens as the answer: the demo's shape."""
    answer = tokenizer("The quick brown fox jumps over the lazy dog and runs far away. " * 20)["input_ids"][:80]
    return [Sample(p.id, prompts.chat_ids(tokenizer, p.messages()), answer) for p in prompts.read("demo:train")]


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
    from sparsedraft.packing import bins

    lengths = [len(s) for s in found]
    return sum(lengths) / (len(bins(lengths, LENGTH)) * LENGTH)


def main() -> list[dict]:
    tokenizer = checkpoint.load_tokenizer(MODEL)
    reference = bare(checkpoint.load(MODEL))
    reached = ours(checkpoint.load(MODEL), tokenizer)
    details: dict = {"tokens_per_second": round(reached, 1), "bare_tokens_per_second": round(reference, 1)}
    return [row("fine-tuning against a bare loop", reached / reference, 0.6, **details)]


if __name__ == "__main__":
    setup()
    close(main())
