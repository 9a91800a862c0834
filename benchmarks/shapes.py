"""The sizes that people run, on this machine: models of random weights in int4 with the shapes of known ones.

    python benchmarks/shapes.py [--pairs Llama-3.1-8B:Llama-3.2-1B+Llama-3.2-3B,...]

For each target: tokens/s, v(K), seconds for 2,000 tokens of prompt, bytes and peak memory, llama.cpp and ik_llama.cpp
beside it on Q4_0 files of the same shapes. For each drafter, dense, sparse and layer-pruned to the same MACs: c, and
the MAL at which drafting K tokens breaks even, v(K) + K c. What a MAL would be is not measured here, as weights are
random. The speeds at the MALs of our own tables (Qwen2.5-Coder 1.5B with the 0.5B, Spec-Bench) are examples: another
pair's acceptance is an assumption. About an hour.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import CACHE, GIB, IDLE, ROOT, parser, peak_of, run, seconds
from peers_llama import Llama, available, ik_llama_cpp, llama_cpp
from random_models import SHAPES, layers_of_equal_macs, write_gguf, write_packed
from record import Table
from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.base.places import slug
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Engine

PAIRS = "Llama-3.1-8B:Llama-3.2-1B+Llama-3.2-3B,Qwen2.5-14B:Qwen2.5-0.5B+Qwen2.5-1.5B"
DECODED, PROMPT, CONTEXT = 24, 2000, 64  # tokens
DRAFTED = (1, 2, 3, 4, 5, 8)  # K
SPARSE = {"2:4": 0.5, "2:8": 0.25}  # patterns, and the share of weights that stays
GOAL, FASTER = 1.05, 1.3  # of theirs; of the target alone
BESIDE = 1e9  # bytes that loading may take beside those of the packed weights
LOAD = """
import json, sys
from pathlib import Path
from sparsedraft.native.model import native_model
print(json.dumps({"bytes": native_model(Path(sys.argv[1])).handle.bytes}))
"""
# our own tables, and whose MALs are taken for each way; a mask of 75 % stands for 2:8
TABLES = ROOT / "docs" / "results" / "qwen-coder" / "eval" / "result.json"
EXAMPLES = {"dense": "dense", "2:4": "sd2-2:4", "2:8": "sd2-75", "layers as 2:4": "layer-pruned+distilled"}


def packed(name: str, kind: str, layers: int | None = None) -> Path:
    """The packed folder of the shape `name`; with so many of its layers only."""
    config = SHAPES[name] | ({"num_hidden_layers": layers} if layers else {})
    label = f"{name}-{kind}" + (f"-{layers}-layers" if layers else "")
    return write_packed(CACHE / "shapes" / slug(label.replace(":", "of")), config, kind)


def ready(folder: Path, threads: int) -> Engine:
    """The model in `folder` behind CONTEXT tokens, warm."""
    engine = Engine(native_model(folder), threads=threads)
    engine.forward([7] * CONTEXT)
    step(engine, 1)
    return engine


def step(engine: Engine, tokens: int) -> float:
    """Seconds of a pass over so many tokens behind CONTEXT others."""
    taken = seconds(partial(engine.forward, [7] * tokens, tokens))
    engine.rollback(CONTEXT)
    return taken


def verification(engine: Engine, repeat: int) -> dict[int, float]:
    """v(K) by K: a pass over K + 1 tokens against one over one token just before; medians."""
    seen: dict[int, list[float]] = {k: [] for k in DRAFTED}
    for _ in range(repeat):
        for k in DRAFTED:
            one = step(engine, 1)
            seen[k].append(step(engine, k + 1) / one)
    return {k: statistics.median(ratios) for k, ratios in seen.items()}


def cost(drafter: Engine, of: Engine, repeat: int) -> float:
    """c: a token of the drafter against one of the target just before; the median."""
    ratios = []
    for _ in range(repeat):
        one = step(of, 1)
        ratios.append(step(drafter, 1) / one)
    return statistics.median(ratios)


def examples() -> dict[str, dict[int, float]]:
    """MALs by K of the drafters of our tables, by the way that they are made."""
    stored = {of["name"]: of["k"] for of in json.loads(TABLES.read_text(encoding="utf-8"))["drafters"]}
    return {
        way: {int(k): at["mal"] for k, at in stored[name].items() if int(k) in DRAFTED}
        for way, name in EXAMPLES.items()
    }


def target(
    name: str, options: argparse.Namespace, peers: dict[str, Llama], table: Table
) -> tuple[Engine, dict[int, float]]:
    """(the target's engine behind CONTEXT tokens, v(K) by K)."""
    folder = packed(name, "dense")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    _, peak_memory = peak_of(f"loading {name}", LOAD, folder, env=os.environ | {"SPARSEDRAFT_NATIVE_CACHE": "off"})
    table.limit(f"{name}, int4: peak memory of loading", peak_memory, (size + BESIDE) / GIB, "GiB", bytes=size)
    engine = Engine(native_model(folder), threads=options.threads)
    file = write_gguf(CACHE / "shapes" / f"{slug(name)}-q4_0.gguf", SHAPES[name])
    ours: list[float] = []
    theirs: dict[str, list[float]] = {label: [] for label in peers}
    for _ in range(options.turns):
        engine.rollback(0)
        time.sleep(IDLE)
        ours.append(DECODED / seconds(lambda: [engine.forward([7]) for _ in range(DECODED)]))
        for label, llama in peers.items():
            theirs[label].append(llama.rates(file, options.threads, (), DECODED)["decode"])
    rate = statistics.median(ours)
    peak = {label: round(statistics.median(rates), 2) for label, rates in theirs.items()}
    table.note(f"{name}, int4: decode, tokens/s", rate, **peak, bytes=size, own_turns=[round(r, 2) for r in ours])
    if theirs:
        best = max(peak, key=lambda label: peak[label])
        table.ratio(f"{name}, int4: decode / theirs", rate / peak[best], GOAL, theirs=best)
    engine.rollback(0)
    table.note(f"{name}, int4: seconds for {PROMPT} tokens of prompt", seconds(partial(engine.forward, [7] * PROMPT)))
    engine.rollback(CONTEXT)
    v = verification(engine, options.steps)
    for k, value in v.items():
        table.note(f"{name}, int4: v({k})", value)
    return engine, v


def drafters(name: str) -> dict[str, Callable[[], Path]]:
    """Ways of having the drafter `name`: dense, sparse, and with fewer layers, which computes as much as 2:4."""
    found: dict[str, Callable[[], Path]] = {"dense": partial(packed, name, "dense")}
    found |= {pattern: partial(packed, name, pattern) for pattern in SPARSE}
    for pattern, kept in SPARSE.items():
        found[f"layers as {pattern}"] = partial(packed, name, "dense", layers_of_equal_macs(SHAPES[name], kept))
    return found


def borders(pair: str, v: dict[int, float], costs: dict[str, float], table: Table) -> float:
    """Note c and the MAL that breaks even at each K; the best speed at the MALs of our tables."""
    best, tables = 0.0, examples()
    for way, c in costs.items():
        border = {k: round(v[k] + k * c, 3) for k in DRAFTED}
        table.note(f"{pair}, {way}: c", c, breaks_even_at=border)
        if mals := tables.get(way):
            speeds = {k: mal / border[k] for k, mal in mals.items()}
            k = max(speeds, key=lambda k: speeds[k])
            table.note(f"{pair}, {way}: speed at an assumed MAL of {mals[k]:.2f}", speeds[k], k=k)
            best = max(best, speeds[k])
    return best


def work(options: argparse.Namespace, table: Table) -> None:
    peers, missing = available({"llama.cpp": llama_cpp, "ik_llama.cpp": ik_llama_cpp})
    for sentence in missing:
        console.print(sentence, soft_wrap=True, markup=False)
    for pair in options.pairs.split(","):
        name, _, others = pair.partition(":")
        if unknown := [n for n in (name, *others.split("+")) if n not in SHAPES]:
            raise UserError(f"--pairs {unknown[0]!r} is no shape: there are {', '.join(SHAPES)}.")
        engine, v = target(name, options, peers, table)
        best = 0.0
        for other in others.split("+"):
            costs = {
                way: cost(ready(folder(), options.threads), engine, options.steps)
                for way, folder in drafters(other).items()
            }
            best = max(best, borders(f"{name} with {other}", v, costs, table))
        table.ratio(f"{name}: best speed at assumed MALs / alone", best, FASTER)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", help=f"TARGET:DRAFTER+DRAFTER,... of the shapes; default: {PAIRS}")
    options = arguments.parse_args()
    options.pairs = options.pairs or ("Qwen2.5-1.5B:Qwen2.5-0.5B" if options.quick else PAIRS)
    options.turns, options.steps = (1, 3) if options.quick else (3, 9)
    run("shapes", options, work)


if __name__ == "__main__":
    main()
