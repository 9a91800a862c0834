"""Whole models on the native engine: decoding, verifying, prefill, speculation (a part of runtime.py)."""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from runtime import against, ratio, roof, torch_seconds
from runtime_others import llama_rate, llama_speculation, openvino_rate
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.native.model import NativeModel, native_model
from sparsedraft.native.session import Engine
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.stages.distill.stage import distill
from sparsedraft.stages.finetune.loop import Settings
from sparsedraft.stages.finetune.stage import finetune
from sparsedraft.stages.pack.stage import pack
from sparsedraft.stages.prune.options import PruneOptions
from sparsedraft.stages.prune.stage import prune
from sparsedraft.text import prompts
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.transformers.backend import TransformersBackend

CONTEXT, STEPS = 64, 16  # tokens before what is timed, and how many steps are
HEAD = 32768  # tokens of a trimmed head
PATTERNS = {"2:4": "2:4", "4:8": "4:8", "2:8": "2:8", "50 %": "unstructured"}
CONVERSATIONS = 768  # that the target writes where no data is given: 557 good ones, 69,532 tokens of answers


def drafters(target: Path, drafter: str, chosen: argparse.Namespace) -> dict[str, Path]:
    """The drafter packed to int8, dense and sparse, its head whole and trimmed.

    Pruned by SparseGPT on answers of the target (`chosen.data`, else prompts and answers that it writes here); SD2: one
    of them, fine-tuned on the same data.
    """
    out, data = chosen.out, chosen.data
    if data is None:
        data = out / "data"
        distill(str(target), None, data, mode="magpie", engine="native", limit=CONVERSATIONS)
    found = {"dense": drafter}
    for name, pattern in PATTERNS.items():
        found[name] = str(out / name.replace(":", "of").replace(" %", ""))
        how: dict[str, Any] = {"pattern": pattern, "tokens": 16384, "refine": True}
        prune(PruneOptions(model=drafter, out=Path(found[name]), calibration=str(data), **how))
    if chosen.finetune:
        name = f"SD2 {chosen.finetune_pattern}"
        start = found[chosen.finetune_pattern]
        settings = Settings(
            tokens=chosen.finetune, learning_rate=1e-5, sequence_length=512, rows_per_step=4, train_embeddings=False
        )
        finetune(start, str(data), Path(f"{start}-sd2"), settings=settings, validation_prompts=24, dtype="bfloat16")
        found[name] = f"{start}-sd2"
    packed = {}
    for name, model in found.items():
        folder = out / "dense" if name == "dense" else Path(model)
        for label, trim in (("", False), (f", head {HEAD}", True)):
            small = folder.with_name(f"{folder.name}-int8{'-trimmed' if trim else ''}")
            head = (HEAD, str(data)) if trim else (None, None)
            pack(model, small, weights="int8", head_tokens=head[0], head_data=head[1])
            packed[f"{name} int8{label}"] = small
    return packed


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


def drafting(engine: Engine) -> Any:
    """A stopwatch of one drafted token of STEPS after CONTEXT."""
    engine.rollback(0)
    engine.forward([7] * CONTEXT)

    def once() -> float:
        start = time.perf_counter()
        engine.draft(STEPS, 7)
        seconds = time.perf_counter() - start
        engine.rollback(CONTEXT)
        return seconds / STEPS

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

    def steps() -> None:
        for _ in range(STEPS):
            backend.forward([[7]], [1])
            backend.rollback([CONTEXT])

    def float32() -> float:
        return torch_seconds(steps) / STEPS

    goals = {"2:4 int8": 8.0, f"2:8 int8, head {HEAD}": 14.0}
    for name, folder in packed.items():
        model = native_model(folder)
        seconds, (value,) = against(drafting(Engine(model, threads=threads)), [float32], repeat=5)
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
        return torch_seconds(lambda: backend.forward([[7] * 512], [1]))

    seconds, (value,) = against(native, [float32], repeat=3)
    return ratio("prefill of 512 tokens, dense int8 / transformers float32", value, 1, seconds=round(seconds, 2))


class Answers:
    """Whole answers of the int8 target, greedy: prompts' reading included, with a drafter or alone."""

    def __init__(self, target: Path, limit: int, new: int) -> None:
        self.side = LoadedModel.load(target, runtime="native")
        chats = [p.messages() for p in prompts.read("demo:eval")[:limit]]
        self.asked = [templates.chat_ids(self.side.tokenizer, messages) for messages in chats]
        self.texts = [str(self.side.tokenizer.decode(ids)) for ids in self.asked]
        self.alone, self.new = Pair.of(self.side, None, "auto", Sampling()), new
        self.expected = [self.one(self.alone, Constant(0), ids)[0] for ids in self.asked]

    def one(self, pair: Pair, policy: Policy, ids: list[int]) -> tuple[list[int], float, int]:
        """(tokens, seconds, steps) of one answer."""
        start = time.perf_counter()
        made = generate(pair.decoder([pair.prompted(ids)], policy, Sampling()), ids, self.new)
        return made.tokens, time.perf_counter() - start, len(made.steps)

    def against_alone(self, pair: Pair, policies: dict[str, Policy]) -> dict[str, dict[str, Any]]:
        """Figures by policy, of all answers: each prompt is answered alone and by every policy, one after the other."""
        plain, total = 0.0, {label: [0.0, 0, 0] for label in policies}  # seconds, tokens, steps
        for ids, expected in zip(self.asked, self.expected, strict=True):
            plain += self.one(self.alone, Constant(0), ids)[1]
            for label, policy in policies.items():
                text, seconds, steps = self.one(pair, policy, ids)
                if text != expected:
                    raise RuntimeError("the text is not the target's own")
                total[label] = [a + b for a, b in zip(total[label], (seconds, len(text), steps), strict=True)]
        return {
            label: {
                "speedup": plain / seconds, "mal": round(tokens / steps, 2),
                "tokens_per_second": round(tokens / seconds, 2), "target_tokens_per_second": round(tokens / plain, 2),
            }
            for label, (seconds, tokens, steps) in total.items()
        }  # fmt: skip


def speculation(
    target: Path, packed: dict[str, Path], plain: tuple[str, str], limit: int = 6, new: int = 64
) -> tuple[list[dict[str, Any]], Answers]:
    """The int8 target with each drafter against alone; the best sparse one against transformers, float32."""
    answers, rows, best, best_rate, least = Answers(target, limit, new), [], 0.0, 0.0, float("inf")
    for name, folder in packed.items():
        pair = Pair.of(answers.side, LoadedModel.load(folder, runtime="native"), "auto", Sampling())
        policies: dict[str, Policy] = {f"K={k}": Constant(k) for k in (2, 3, 4)} | {"K=auto": policy_named("auto")}
        for label, figures in answers.against_alone(pair, policies).items():
            value = figures.pop("speedup")
            rows.append(ratio(f"speculation, {name} drafter, {label} / target alone", value, None, **figures))
            if label == "K=auto":
                least = min(least, value)
            if not name.startswith("dense") and value > best:
                best, best_rate = value, figures["tokens_per_second"]
    rows.append(ratio("speculation, best sparse drafter / target alone", best, 1.6))
    rows.append(ratio("speculation, K=auto with the worst drafter / target alone", least, 0.97))
    theirs = assisted_rate(plain, answers.asked, new)
    rows.append(
        ratio("speculation, best sparse drafter / transformers' assisted generation, float32", best_rate / theirs, 6)
    )
    return rows, answers


def others(
    chosen: argparse.Namespace, best_native: float, answers: Answers, packed: dict[str, Path]
) -> list[dict[str, Any]]:
    """llama.cpp and OpenVINO where they were given, each beside our own."""
    rows, threads = [], chosen.threads
    own = Engine(packed["dense int8"], threads=threads)

    def rate() -> float:
        time.sleep(0.3)  # torch's idle threads fall asleep
        once = drafting(own)
        return 1 / statistics.median(once() for _ in range(5))

    if chosen.llama_cpp:
        target, drafter, small = chosen.gguf
        for label, file in (("Q8_0", drafter), ("Q4_K_M", small)):
            rows.append(
                ratio(
                    f"decode, own dense int8 / llama.cpp {label}",
                    rate() / llama_rate(chosen.llama_cpp, file, threads, new=48),
                    None,
                )
            )
        best = max(
            (llama_speculation(chosen.llama_cpp, target, drafter, answers.texts, k, answers.new, threads), k)
            for k in (2, 3, 4, 5)
        )
        (theirs, mal), k = best
        rows.append(
            ratio("speculation, best sparse drafter / llama.cpp's, Q8_0", best_native / theirs, 1.3,
                  k=k, mal=round(mal, 2), tokens_per_second=round(theirs, 2))
        )  # fmt: skip
    if chosen.openvino:
        python, folder = chosen.openvino
        rows.append(
            ratio(
                "decode, own dense int8 / OpenVINO GenAI int8",
                rate() / openvino_rate(python, Path(folder), threads),
                None,
            )
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
    pack(chosen.target, chosen.out / "target", weights="int8")
    packed = drafters(chosen.out / "target", chosen.drafter, chosen)
    packed |= {name: Path(folder) for name, folder in (text.split("=", 1) for text in chosen.more)}
    rows = []
    torch.set_num_threads(chosen.threads)
    if "models" in parts:
        rows += models(native_model(chosen.out / "target"), packed, chosen.drafter, chosen.threads)
    if "speculation" in parts:
        # sparse with a whole head: decoding shows what that costs
        tried = {
            name: folder for name, folder in packed.items() if name.startswith("dense") or not name.endswith("int8")
        }
        found, answers = speculation(chosen.out / "target", tried, (chosen.target, chosen.drafter), chosen.limit)
        rows += found
        best = max(
            row["tokens_per_second"] for row in found if "tokens_per_second" in row and ", dense" not in row["name"]
        )
        rows += others(chosen, best, answers, packed)
    return rows
