"""Whole models on the native engine: reading, decoding and verifying, against transformers in float32.

    python benchmarks/decoding.py [--target MODEL] [--drafter MODEL]

Models and data are made in the cache folder at the first run (about an hour); then it takes a quarter of an hour.
"""

import argparse
import time
from pathlib import Path

from common import Stopwatch, against, parser, run, seconds, torch_seconds
from drafters import Models, add_options, prepare
from record import Table
from sparsedraft.models import checkpoint
from sparsedraft.native.model import native_model
from sparsedraft.native.random_layers import streaming_read
from sparsedraft.native.session import Engine
from sparsedraft.writers.transformers.backend import TransformersBackend

CONTEXT, STEPS = 64, 16  # tokens before what is timed, and how many steps are
PROMPT, LONG = 512, 3000  # tokens of the prompts that are read
GOALS = {"2:4 int8": 8.0, "2:8 int8, head 32768": 14.0}  # of decoding, against transformers in float32


def stepping(engine: Engine, tokens: int = 1) -> Stopwatch:
    """Seconds of one pass over `tokens` tokens after CONTEXT."""
    engine.rollback(0)
    engine.forward([7] * CONTEXT)

    def once() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            engine.forward([7] * tokens, tokens)
            engine.rollback(CONTEXT)
        return (time.perf_counter() - start) / STEPS

    return once


def drafting(engine: Engine) -> Stopwatch:
    """Seconds of one drafted token, of STEPS after CONTEXT."""
    engine.rollback(0)
    engine.forward([7] * CONTEXT)

    def once() -> float:
        taken = seconds(lambda: engine.draft(STEPS, 7))
        engine.rollback(CONTEXT)
        return taken / STEPS

    return once


def verifying(models: Models, threads: int, table: Table, repeat: int) -> None:
    """v: how much longer the target takes over several tokens than over one."""
    target = native_model(models.packed)
    engine = Engine(target, threads=threads)
    one = stepping(engine)
    for count, limit in ((4, 1.25), (8, 2.0)):
        several = stepping(Engine(target, pool=engine.pool), count)
        _, (value,) = against(one, [several], repeat)
        table.limit(f"v: dense int8 target, {count} tokens / 1", value, limit, "x")


def decoding(models: Models, threads: int, table: Table, repeat: int) -> None:
    """Each packed drafter's tokens, and the dense one's reading, against transformers in float32."""
    limit = streaming_read(threads)
    backend = TransformersBackend(checkpoint.load(models.drafter))
    backend.forward([[7] * CONTEXT], [1])

    def steps() -> None:
        for _ in range(STEPS):
            backend.forward([[7]], [1])
            backend.rollback([CONTEXT])

    for name, folder in models.drafters.items():
        model = native_model(folder)
        engine = Engine(model, threads=threads)
        taken, (value,) = against(drafting(engine), [lambda: torch_seconds(steps) / STEPS], repeat)
        share = model.handle.bytes / taken / limit
        figures = {"tokens_per_second": round(1 / taken, 1), "bytes": model.handle.bytes, "of_roof": round(share, 2)}
        label = f"decode, {name} drafter / transformers float32"
        if name in GOALS:
            table.ratio(label, value, GOALS[name], **figures)
        else:
            table.note(label, value, **figures)
        if name == "dense int8":
            table.ratio("decode, dense int8 drafter: share of the streaming read", share, 0.6)
    reading(models, backend, threads, table, repeat)


def reading(models: Models, backend: TransformersBackend, threads: int, table: Table, repeat: int) -> None:
    """PROMPT tokens at once, the last one's logits."""
    engine = Engine(native_model(models.drafters["dense int8"]), threads=threads)

    def native() -> float:
        engine.rollback(0)
        return seconds(lambda: engine.forward([7] * PROMPT))

    def float32() -> float:
        backend.rollback([0])
        return torch_seconds(lambda: backend.forward([[7] * PROMPT], [1]))

    taken, (value,) = against(native, [float32], repeat)
    table.ratio(f"prefill of {PROMPT} tokens, dense int8 / transformers float32", value, 1, seconds=round(taken, 2))


def long_context(folder: Path, threads: int, table: Table, repeat: int) -> None:
    """What many tokens of context cost a model, in reading and in decoding."""
    engine = Engine(native_model(folder), threads=threads)

    def read(tokens: int) -> float:
        engine.rollback(0)
        return sum(seconds(lambda: engine.forward([7] * PROMPT)) for _ in range(tokens // PROMPT))

    def decode(tokens: int) -> float:
        engine.rollback(tokens)
        return seconds(lambda: [engine.forward([7]) for _ in range(STEPS)])

    long = LONG // PROMPT * PROMPT
    taken, (several,) = against(lambda: read(PROMPT), [lambda: read(long)], repeat)
    figures = {"tokens_per_second": round(PROMPT / taken, 1)}
    table.ratio(f"{folder.name}: tokens/s, reading {long} / {PROMPT}", long / PROMPT / several, 0.85, **figures)
    taken, (slower,) = against(lambda: decode(PROMPT), [lambda: (read(long), decode(long))[1]], repeat)
    figures = {"tokens_per_second": round(STEPS / taken, 1)}
    table.note(f"{folder.name}: tokens/s, decoding after {long} / {PROMPT}", 1 / slower, **figures)


def work(options: argparse.Namespace, table: Table) -> None:
    models = prepare(options)
    repeat = 2 if options.quick else 5
    verifying(models, options.threads, table, repeat)
    decoding(models, options.threads, table, repeat)
    for folder in (models.packed, models.drafters["dense int8"]):
        long_context(folder, options.threads, table, repeat)


if __name__ == "__main__":
    arguments = parser(__doc__)
    add_options(arguments)
    run("decoding", arguments.parse_args(), work)
