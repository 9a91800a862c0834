"""The int4 pair beside llama.cpp, ik_llama.cpp and our own int8 of commit 91ad1f9, in the same minutes.

    python benchmarks/fourbit.py [--only rates,verify,answers,layers,memory,others] [--prompts FILE]

rates: the target alone, decoding and reading; verify: v(K); answers: whole answers with drafters; layers: one token
through random weights of the drafter's shapes; memory: of generating; others: runtimes without a goal.

The first run builds the peers and makes the models (three quarters of an hour, in the cache folder); then it takes
about an hour on 2 quiet cores. What is measured is also written to fourbit/results in the cache folder as it comes, a
file a group.
"""

from collections.abc import Callable
from functools import partial

import fourbit_answers as whole
import fourbit_rates as alone
import groups
import peers_onnx
import peers_openvino
from common import GIB, measured, parser
from fourbit_models import add_options
from sparse_kernels import Layers, four_bits
from sparsedraft.models import checkpoint
from sparsedraft.native.random_layers import streaming_read
from sparsedraft.plan import size_up
from whole_answers import Task, Way, leaving_out

PROMPT = "Write a function that merges two sorted lists, and explain how it works."
BESIDE = 250e6  # bytes of a process beside its models: Python, torch, the tokenizer, what is computed


class Bench(groups.Bench):
    """One run: its options, the models and peers as they are first needed, and the rows."""

    name = "fourbit"


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
    task = Task.of(bench.options.prompts, count, tokens, checkpoint.load_tokenizer(models.target))
    both = [bench.files(model, "Q4_0", "Q4_K_M") for model in (models.target, models.drafter)]
    starts = whole.peer_starts(bench.peers, {kind: (both[0][kind], both[1][kind]) for kind in both[0]}, threads)
    chosen = whole.chosen_peers(starts, task, partial(bench.keep, "answers-peers-chosen"))
    own = whole.own_ways(models.int4, models.drafters, "int4")
    pair, kept = whole.chosen_own(own, task, partial(bench.keep, "answers-own-chosen"))
    ways: dict[str, Way] = {name: own[name] for name in ("int4 alone", *kept)}
    if bench.earlier:
        ways["int8 of 91ad1f9, dense drafter, K=auto"] = bench.earlier.answer
    else:
        ways |= whole.own_ways(models.int8, {"dense": models.dense_int8}, "int8")
    for name in chosen:
        with leaving_out(name):
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
    with leaving_out("OpenVINO GenAI"):
        python, folder = peers_openvino.exported(bench.models.target, "int4")
        rate = peers_openvino.rate(python, folder, bench.threads, alone.DECODED)
        bench.table.note("decode, OpenVINO GenAI int4, tokens/s", rate)
    with leaving_out("onnxruntime-genai"):
        python, folder = peers_onnx.exported(bench.models.target)
        rate = peers_onnx.rate(python, folder, bench.threads, alone.DECODED)
        bench.table.note("decode, onnxruntime-genai int4, tokens/s", rate)


GROUPS: dict[str, Callable[[Bench], None]] = {
    "rates": rates, "verify": verify, "answers": answers, "layers": layers, "memory": memory, "others": others
}  # fmt: skip


def main() -> None:
    arguments = parser(__doc__)
    add_options(arguments)
    groups.add_only(arguments, GROUPS)
    arguments.add_argument("--prompts", default="demo:eval", help="whose answers are timed, such as Spec-Bench's file")
    arguments.add_argument("--limit", type=int, default=24, help="prompts")
    groups.main(Bench, GROUPS, arguments)


if __name__ == "__main__":
    main()
