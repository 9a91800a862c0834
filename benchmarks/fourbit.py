"""The int4 pair beside llama.cpp, ik_llama.cpp and our own int8 of commit 91ad1f9, in the same minutes.

    python benchmarks/fourbit.py [--only rates,verify,answers,layers,memory,others] [--prompts FILE]

rates: the target alone, decoding and reading; verify: v(K); answers: whole answers with drafters; layers: one token
through random weights of the drafter's shapes; memory: of generating; others: runtimes without a goal.

The first run builds the peers and makes the models (three quarters of an hour, in the cache folder); then it takes
about an hour on 2 quiet cores. What is measured is also written to fourbit/results in the cache folder as it comes, a
file a group.
"""

import argparse
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import fourbit_answers as whole
import fourbit_rates as alone
import peers_onnx
import peers_openvino
from common import CACHE, GIB, measured, parser, run
from fourbit_models import Models, add_options
from peers import Missing
from peers_earlier import Earlier
from peers_llama import Llama, available, gguf, ik_llama_cpp, llama_cpp
from record import Table
from sparse_kernels import Layers, four_bits
from sparsedraft.base.console import console
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.models import checkpoint
from sparsedraft.native.random_layers import streaming_read
from sparsedraft.plan import size_up

PROMPT = "Write a function that merges two sorted lists, and explain how it works."
BESIDE = 250e6  # bytes of a process beside its models: Python, torch, the tokenizer, what is computed


class Bench:
    """One run: its options, the models and peers as they are first needed, and the rows."""

    def __init__(self, options: argparse.Namespace, table: Table, ends: ExitStack) -> None:
        self.options, self.table, self.ends = options, table, ends
        self.threads, self.turns = options.threads, 1 if options.quick else 3

    @cached_property
    def models(self) -> Models:
        return Models(self.options)

    @cached_property
    def peers(self) -> dict[str, Llama]:
        found, missing = available({"llama.cpp": llama_cpp, "ik_llama.cpp": ik_llama_cpp})
        for sentence in missing:
            console.print(sentence, soft_wrap=True, markup=False)
        return found

    def files(self, model: str, *kinds: str) -> dict[str, Path]:
        """GGUF files by kind: none where llama.cpp, which makes them, is not there."""
        if "llama.cpp" not in self.peers:
            return {}
        return {kind: gguf(self.peers["llama.cpp"], model, kind) for kind in kinds}

    @cached_property
    def earlier(self) -> Earlier | None:
        """Our build of 91ad1f9, None where it cannot be had."""
        try:
            found = Earlier(self.models.target, self.models.drafter, self.threads)
        except Missing as why:
            console.print(f"left out: our int8 of 91ad1f9: {why}", soft_wrap=True, markup=False)
            return None
        self.ends.callback(found.close)
        return found

    def keep(self, name: str, value: Any) -> None:
        """Write what has been measured so far."""
        folder = CACHE / "fourbit" / "results"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}.json", value)


def rates(bench: Bench) -> None:
    """The target alone."""
    prompts = (64, 128) if bench.options.quick else alone.PROMPTS
    files = bench.files(bench.models.target, *alone.FILES)
    rows = alone.configurations(bench.models, bench.peers, files, bench.earlier, bench.threads)
    alone.take_turns(rows, prompts, bench.turns, partial(bench.keep, "rates-turns"))
    # the host's memory has fast and slow minutes: more turns of decoding alone, seconds apart
    alone.take_turns(alone.fast(rows), (), 2 * bench.turns, partial(bench.keep, "rates-decoding"))
    alone.compare(rows, prompts, streaming_read(bench.threads), bench.table)


def verify(bench: Bench) -> None:
    """v(K) of the target."""
    alone.verify(bench.models, bench.threads, bench.turns, bench.table)


def answers(bench: Bench) -> None:
    """Whole answers."""
    count, tokens = (2, 12) if bench.options.quick else (bench.options.limit, 256)
    models, threads = bench.models, bench.threads
    task = whole.Task.of(bench.options.prompts, count, tokens, checkpoint.load_tokenizer(models.target))
    both = [bench.files(model, "Q4_0", "Q4_K_M") for model in (models.target, models.drafter)]
    starts = whole.peer_starts(bench.peers, {kind: (both[0][kind], both[1][kind]) for kind in both[0]}, threads)
    chosen = whole.chosen_peers(starts, task, partial(bench.keep, "answers-peers-chosen"))
    own = whole.own_ways(models.int4, models.drafters, "int4")
    pair, kept = whole.chosen_own(own, task, partial(bench.keep, "answers-own-chosen"))
    ways: dict[str, whole.Way] = {name: own[name] for name in ("int4 alone", *kept)}
    if bench.earlier:
        ways["int8 of 91ad1f9, dense drafter, K=auto"] = bench.earlier.answer
    else:
        ways |= whole.own_ways(models.int8, {"dense": models.dense_int8}, "int8")
    for name in chosen:
        with whole.leaving_out(name):
            server = starts[name]()
            bench.ends.callback(server.close)
            ways[name] = server.answer
    whole.measure(ways, pair, task, partial(bench.keep, "answers-turns"), bench.table)


def layers(bench: Bench) -> None:
    """One token through the drafter's layers, sparse int4 against dense int4."""
    count = 4 if bench.options.quick else 24
    four_bits(Layers(bench.models.drafter, count, bench.threads), bench.table, 2 if bench.options.quick else 7)


def memory(bench: Bench) -> None:
    """Peak memory of generating with the int4 pair, against packed bytes, caches and BESIDE."""
    models, tokens = bench.models, 16 if bench.options.quick else 128
    drafter = models.one_shot
    how = ["--prompt", PROMPT, "--max-new-tokens", str(tokens), "--policy", "auto"]
    result, peak = measured("generate", models.int4, "--drafter", drafter, *how)
    length = result["prompt_tokens"] + result["tokens"]
    caches = sum(length * size_up(model).kv_bytes(2) for model in (models.target, models.drafter))
    packed = sum(file.stat().st_size for pack in (models.int4, drafter) for file in pack.glob("*.safetensors"))
    figures = {"packed_bytes": packed, "cache_bytes": caches, "beside_bytes": int(BESIDE)}
    limit = 1.05 * (packed + caches + BESIDE) / GIB
    bench.table.limit("peak memory of generating with the int4 pair", peak, limit, "GiB", **figures)


def others(bench: Bench) -> None:
    """Runtimes that decode in an int4 of their own."""
    with whole.leaving_out("OpenVINO GenAI"):
        python, folder = peers_openvino.exported(bench.models.target, "int4")
        rate = peers_openvino.rate(python, folder, bench.threads, alone.DECODED)
        bench.table.note("decode, OpenVINO GenAI int4, tokens/s", rate)
    with whole.leaving_out("onnxruntime-genai"):
        python, folder = peers_onnx.exported(bench.models.target)
        rate = peers_onnx.rate(python, folder, bench.threads, alone.DECODED)
        bench.table.note("decode, onnxruntime-genai int4, tokens/s", rate)


GROUPS: dict[str, Callable[[Bench], None]] = {
    "rates": rates, "verify": verify, "answers": answers, "layers": layers, "memory": memory, "others": others
}  # fmt: skip


def work(options: argparse.Namespace, table: Table) -> None:
    with ExitStack() as ends:
        bench = Bench(options, table, ends)
        for name in options.only.split(","):
            before = len(table.rows), set(table.figures)
            try:
                GROUPS[name](bench)
            except Missing as why:
                console.print(f"left out: {name}: {why}", soft_wrap=True, markup=False)
            finally:
                figures = {key: value for key, value in table.figures.items() if key not in before[1]}
                bench.keep(name, {"rows": table.rows[before[0] :], "figures": figures})


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the peers' servers end, too
    arguments = parser(__doc__)
    add_options(arguments)
    arguments.add_argument("--only", default=",".join(GROUPS), help="groups of rows, separated by commas")
    arguments.add_argument("--prompts", default="demo:eval", help="whose answers are timed, such as Spec-Bench's file")
    arguments.add_argument("--limit", type=int, default=24, help="prompts")
    options = arguments.parse_args()
    if unknown := [name for name in options.only.split(",") if name not in GROUPS]:
        arguments.error(f"--only {unknown[0]!r}: there are {', '.join(GROUPS)}")
    run("fourbit", options, work)


if __name__ == "__main__":
    main()
