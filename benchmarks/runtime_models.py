"""Whole models on the native engine: decoding, verifying, prefill, speculation (a part of runtime.py)."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from runtime import against, ratio, roof
from sparsedraft import checkpoint, prompts
from sparsedraft.console import console
from sparsedraft.prune.stage import prune
from sparsedraft.runtime.engine import Engine
from sparsedraft.runtime.model import NativeModel, native_model
from sparsedraft.runtime.pack import pack
from sparsedraft.speculate.backend import TransformersBackend
from sparsedraft.speculate.decode import generate
from sparsedraft.speculate.lookahead import Constant, Policy, policy_named
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.sampling import Sampling
from sparsedraft.speculate.side import Side

CONTEXT, STEPS = 64, 16  # tokens before what is timed, and how many steps are


def drafters(model: str, out: Path) -> dict[str, Path]:
    """The drafter packed dense and sparse; pruned by SparseGPT on the demo's prompts, not fine-tuned."""
    found = {"dense int8": out / "dense-int8"}
    pack(model, found["dense int8"], weights="int8")
    for pattern in ("2:4", "4:8", "2:8"):
        name = pattern.replace(":", "of")
        prune(model, out / name, "demo:train", pattern=pattern, tokens=4096)
        found[f"{pattern} int8"] = out / f"{name}-int8"
        pack(str(out / name), found[f"{pattern} int8"], weights="int8")
    return found


def stepping(engine: Engine, tokens: int = 1) -> Any:
    """A stopwatch of one pass over `tokens` more tokens after CONTEXT."""
    engine.rollback(0)
    engine.forward([7] * CONTEXT)

    def once() -> float:

        start = time.perf_counter()
        for _ in range(STEPS):
            engine.forward([7] * tokens, tokens)
            engine.rollback(CONTEXT)
        return (time.perf_counter() - start) / STEPS

    return once


def models(target: NativeModel, packed: dict[str, Path], drafter: str, threads: int) -> list[dict[str, Any]]:
    """v(K) of the target; drafters' decoding and prefill against transformers float32."""

    rows = []
    engine = Engine(target, threads=threads)
    one = stepping(engine)
    for count, goal in ((4, 1.25), (8, 2.0)):
        several = Engine(target, pool=engine.pool)
        _, (value,) = against(one, [stepping(several, count)], repeat=3)
        rows.append(ratio(f"v: dense int8 target, {count} tokens / 1", value, goal, better="less"))
    limit = roof(threads)
    backend = TransformersBackend(checkpoint.load(drafter))
    backend.forward([[7] * CONTEXT], [1])

    def float32() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            backend.forward([[7]], [1])
            backend.rollback([CONTEXT])
        return (time.perf_counter() - start) / STEPS

    goals = {"2:4 int8": 8.0}
    for name, folder in packed.items():
        model = native_model(folder)
        seconds, (value,) = against(stepping(Engine(model, threads=threads)), [float32], repeat=5)
        share = model.handle.bytes / seconds / limit
        details = {"tokens_per_second": round(1 / seconds, 1), "bytes": model.handle.bytes, "of_roof": round(share, 2)}
        rows.append(ratio(f"decode, {name} drafter / transformers float32", value, goals.get(name), **details))
        if name == "dense int8":
            rows.append(ratio("decode, dense int8 drafter: share of the streaming bandwidth", share, 0.6))
            rows.append(prefill(Engine(model, threads=threads), backend))
    return rows


def prefill(engine: Engine, backend: TransformersBackend) -> dict[str, Any]:
    """512 tokens at once, the last one's logits."""

    def native() -> float:
        engine.rollback(0)
        start = time.perf_counter()
        engine.forward([7] * 512)
        return time.perf_counter() - start

    def float32() -> float:
        backend.rollback([0])
        start = time.perf_counter()
        backend.forward([[7] * 512], [1])
        return time.perf_counter() - start

    seconds, (value,) = against(native, [float32], repeat=3)
    return ratio("prefill of 512 tokens, dense int8 / transformers float32", value, 1, seconds=round(seconds, 2))


def speculation(
    target: Path, packed: dict[str, Path], plain: tuple[str, str], limit: int = 6, new: int = 64
) -> list[dict[str, Any]]:
    """Whole answers, greedy: the int8 target alone, with each drafter, and transformers' assisted generation."""

    side = Side.load(target, runtime="native")
    asked = [prompts.chat_ids(side.tokenizer, p.messages()) for p in prompts.read("demo:eval")[:limit]]

    def run(pair: Pair, policy: Policy) -> tuple[list[list[int]], float, float]:
        texts, seconds, steps = [], 0.0, 0
        for ids in asked:
            start = time.perf_counter()
            made = generate(pair.decoder([pair.prompted(ids)], policy, Sampling()), ids, new)
            seconds += time.perf_counter() - start
            texts.append(made.tokens)
            steps += len(made.steps)
        total = sum(map(len, texts))
        return texts, total / seconds, total / steps

    alone = Pair.of(side, None, "auto", Sampling())
    run(alone, Constant(0))
    expected, rate, _ = run(alone, Constant(0))
    console.print(f"target alone: {rate:.2f} tokens/s")
    rows, best = [], 0.0
    for name, folder in packed.items():
        pair = Pair.of(side, Side.load(folder, runtime="native"), "off", Sampling())
        for policy in (*(Constant(k) for k in (2, 3, 4, 5)), policy_named("auto")):
            texts, found, mal = run(pair, policy)
            if texts != expected:
                raise RuntimeError(f"{name}: the text is not the target's own")
            label = f"K={policy.k}" if isinstance(policy, Constant) else "K=auto"
            details: dict[str, Any] = {"mal": round(mal, 2), "tokens_per_second": round(found, 2)}
            rows.append(ratio(f"speculation, {name} drafter, {label} / target alone", found / rate, None, **details))
            best = max(best, found if name != "dense int8" else 0)
    rows.append(ratio("speculation, best sparse drafter / target alone", best / rate, 1.6))
    theirs = assisted_rate(plain, asked, new)
    rows.append(
        ratio("speculation, best sparse drafter / transformers' assisted generation, float32", best / theirs, 6)
    )
    return rows


def assisted_rate(plain: tuple[str, str], asked: Sequence[list[int]], new: int) -> float:
    """Tokens a second of transformers' assisted generation, both models in float32, K=5."""

    from speculation import assisted

    target, drafter = checkpoint.load(plain[0]), checkpoint.load(plain[1])
    assisted(target, drafter, asked[0], 5, 4)
    start = time.perf_counter()
    total = sum(len(assisted(target, drafter, ids, 5, new)) for ids in asked[:3])
    return total / (time.perf_counter() - start)


def main(chosen: argparse.Namespace, parts: Sequence[str]) -> list[dict[str, Any]]:
    """What was pruned and packed stays in chosen.out: the next run takes it from there."""
    packed = drafters(chosen.drafter, chosen.out)
    pack(chosen.target, chosen.out / "target", weights="int8")
    rows = []
    torch.set_num_threads(chosen.threads)
    if "models" in parts:
        rows += models(native_model(chosen.out / "target"), packed, chosen.drafter, chosen.threads)
    if "speculation" in parts:
        rows += speculation(chosen.out / "target", packed, (chosen.target, chosen.drafter))
    return rows
