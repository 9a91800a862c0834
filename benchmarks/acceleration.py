"""Speculative decoding on the native engine: whole answers with each drafter, against the target alone and peers.

    python benchmarks/acceleration.py [--target MODEL] [--drafter MODEL] [--peers llama.cpp,openvino]

Seconds are those of whole answers, the prompts' reading included; every text must be the target's own. Models and data
are made in the cache folder at the first run (about an hour, the peers another half); then it takes half an hour.
"""

import argparse
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers
import peers_openvino
from common import IDLE, parser, run, seconds
from decoding import drafting
from drafters import Models, add_options, prepare
from peers_llama import gguf, llama_cpp
from peers_server import Server
from record import Table
from sparsedraft.base.console import console
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.native.session import Engine
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.text import prompts
from sparsedraft.writers.loaded import LoadedModel


@dataclass
class Total:
    """What the answers to all prompts took."""

    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0

    def add(self, seconds: float, tokens: int, steps: int) -> None:
        self.seconds, self.tokens, self.steps = self.seconds + seconds, self.tokens + tokens, self.steps + steps


class Answers:
    """Whole greedy answers of the packed target, with a drafter or alone."""

    def __init__(self, target: Path, limit: int, tokens: int) -> None:
        self.target, self.tokens = LoadedModel.load(target, runtime="native"), tokens
        chats = [prompt.messages() for prompt in prompts.read("demo:eval")[:limit]]
        self.prompts = [templates.chat_ids(self.target.tokenizer, messages) for messages in chats]
        self.alone = Pair.of(self.target, None, "auto", Sampling())
        self.expected = [self.answer(self.alone, Constant(0), ids)[0] for ids in self.prompts]

    def answer(self, pair: Pair, policy: Policy, ids: list[int]) -> tuple[list[int], float, int]:
        """(tokens, seconds, steps) of one answer."""
        start = time.perf_counter()
        text = generate(pair.decoder([pair.prompt_pair(ids)], policy, Sampling()), ids, self.tokens)
        return text.tokens, time.perf_counter() - start, len(text.steps)

    def against_alone(self, pair: Pair, policies: dict[str, Policy]) -> dict[str, dict[str, Any]]:
        """Figures by policy; each prompt is answered by the target alone and under every policy, one after another."""
        plain, totals = Total(), {label: Total() for label in policies}
        for ids, expected in zip(self.prompts, self.expected, strict=True):
            _, taken, steps = self.answer(self.alone, Constant(0), ids)
            plain.add(taken, len(expected), steps)
            for label, policy in policies.items():
                text, taken, steps = self.answer(pair, policy, ids)
                if text != expected:
                    raise RuntimeError(f"under {label} the text is not the target's own")
                totals[label].add(taken, len(text), steps)
        return {
            label: {
                "speedup": plain.seconds / total.seconds, "mal": round(total.tokens / total.steps, 2),
                "tokens_per_second": round(total.tokens / total.seconds, 2),
                "target_tokens_per_second": round(plain.tokens / plain.seconds, 2),
            }
            for label, total in totals.items()
        }  # fmt: skip


def drafters_against_alone(models: Models, answers: Answers, table: Table) -> float:
    """A figure for each drafter and policy, and rows for the best and the worst; the best sparse one's tokens/s."""
    best, rate, least = 0.0, 0.0, float("inf")
    for name, folder in models.drafters.items():
        dense = name.startswith("dense")
        if not dense and name.endswith("int8"):  # a sparse drafter with a whole head: decoding.py shows what that costs
            continue
        pair = Pair.of(answers.target, LoadedModel.load(folder, runtime="native"), "auto", Sampling())
        policies: dict[str, Policy] = {f"K={k}": Constant(k) for k in (2, 3, 4)} | {"K=auto": policy_named("auto")}
        for label, figures in answers.against_alone(pair, policies).items():
            value = figures.pop("speedup")
            table.note(f"{name} drafter, {label} / target alone", value, **figures)
            if label == "K=auto":
                least = min(least, value)
            if not dense and value > best:
                best, rate = value, figures["tokens_per_second"]
    table.ratio("best sparse drafter / target alone", best, 1.6)
    table.ratio("K=auto with the worst drafter / target alone", least, 0.97)
    return rate


def against_transformers(models: Models, answers: Answers, rate: float, table: Table) -> None:
    """Against transformers' assisted generation, both models in float32, K = 5, on the first three prompts."""
    target, drafter = checkpoint.load(models.target), checkpoint.load(models.drafter)
    peers.assisted(target, drafter, answers.prompts[0], 5, 4)  # warm-up
    written: list[int] = []

    def write() -> None:
        for ids in answers.prompts[:3]:
            written.extend(peers.assisted(target, drafter, ids, 5, answers.tokens))

    taken = seconds(write)
    theirs = len(written) / taken
    name = "best sparse drafter / transformers' assisted generation, float32"
    table.ratio(name, rate / theirs, 6, tokens_per_second=round(theirs, 2))


def against_llama(models: Models, answers: Answers, rate: float, table: Table, threads: int) -> None:
    """Decoding and speculation of llama.cpp. Missing where it cannot be had."""
    llama = llama_cpp()
    target, drafter = (gguf(llama, model, "Q8_0") for model in (models.target, models.drafter))
    for label, file in (("Q8_0", drafter), ("Q4_K_M", gguf(llama, models.drafter, "Q4_K_M"))):
        theirs = statistics.median(llama.rates(file, threads, (), decode=48)["decode"] for _ in range(3))
        table.note(f"decode, own dense int8 / llama.cpp {label}", _rate(models, threads) / theirs)
    runs = {}
    for k in (2, 3, 4, 5):
        with closing(Server(llama, target, threads, drafter, k)) as server:
            found = [server.answer(ids, answers.tokens) for ids in answers.prompts]
        tokens, accepted = sum(each.tokens for each in found), sum(each.accepted for each in found)
        runs[k] = tokens / sum(each.seconds for each in found), tokens / (tokens - accepted)
    k = max(runs, key=lambda k: runs[k][0])
    theirs, mal = runs[k]
    figures = {"k": k, "mal": round(mal, 2), "tokens_per_second": round(theirs, 2)}
    table.ratio("best sparse drafter / llama.cpp's speculation, Q8_0", rate / theirs, 1.3, **figures)


def against_openvino(models: Models, table: Table, threads: int) -> None:
    """Decoding of OpenVINO GenAI. Missing where it cannot be had."""
    theirs = peers_openvino.rate(*peers_openvino.exported(models.drafter), threads)
    table.note("decode, own dense int8 / OpenVINO GenAI int8", _rate(models, threads) / theirs)


def _rate(models: Models, threads: int) -> float:
    """Our own tokens a second of the dense drafter, measured beside a peer."""
    time.sleep(IDLE)
    once = drafting(Engine(models.drafters["dense int8"], threads=threads))
    return 1 / statistics.median(once() for _ in range(5))


def work(options: argparse.Namespace, table: Table) -> None:
    models = prepare(options)
    answers = Answers(models.packed, *((2, 16) if options.quick else (options.limit, 64)))
    rate = drafters_against_alone(models, answers, table)
    against_transformers(models, answers, rate, table)
    names = [] if options.quick else options.peers.split(",")
    for name, compare in {
        "llama.cpp": lambda: against_llama(models, answers, rate, table, options.threads),
        "openvino": lambda: against_openvino(models, table, options.threads),
    }.items():
        if name not in names:
            continue
        try:
            compare()
        except peers.Missing as missing:
            console.print(f"left out: {name}: {missing}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    arguments = parser(__doc__)
    add_options(arguments)
    arguments.add_argument("--limit", type=int, default=4, help="prompts")
    arguments.add_argument("--peers", default="llama.cpp,openvino", help="built in the cache folder; '' for none")
    run("acceleration", arguments.parse_args(), work)
