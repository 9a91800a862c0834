"""What peers_earlier starts, on the modules of commit 91ad1f9.

    PYTHONPATH=SOURCES/src python earlier_worker.py pack CHECKPOINT OUT
    PYTHONPATH=SOURCES/src python earlier_worker.py serve TARGET DRAFTER THREADS

`serve` reads a question in JSON a line, and prints an answer in JSON a line.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def pack(checkpoint: str, out: str) -> None:
    """The checkpoint in int8."""
    from sparsedraft.runtime.pack import pack

    pack(checkpoint, Path(out), weights="int8")


def serve(target: str, drafter: str, threads: str) -> None:
    """Answer questions: {"decode": TOKENS, "behind": OTHERS}, {"read": TOKENS}, {"answer": IDS, "tokens": AT_MOST,
    "drafting": BOOL}."""
    import torch
    from sparsedraft.runtime.engine import Engine
    from sparsedraft.speculate.decode import generate
    from sparsedraft.speculate.lookahead import Constant, policy_named
    from sparsedraft.speculate.sampling import Sampling
    from sparsedraft.speculate.side import Side

    from sparsedraft.speculate.pair import Pair

    torch.set_num_threads(int(threads))
    side, other = (Side.load(folder, runtime="native") for folder in (target, drafter))
    engine = Engine(side.native, threads=int(threads))
    alone, pair = (Pair.of(side, drafting, "auto", Sampling()) for drafting in (None, other))
    auto = policy_named("auto")

    def answer(ids: list[int], tokens: int, drafting: bool) -> int:
        used: Any = pair if drafting else alone
        policy: Any = auto if drafting else Constant(0)
        return len(generate(used.decoder([used.prompted(ids)], policy, Sampling()), ids, tokens).tokens)

    def work(question: dict[str, Any]) -> Callable[[], int]:
        if "decode" in question:
            return lambda: sum(len(engine.forward([7])) for _ in range(question["decode"]))
        if "read" in question:
            return lambda: len(engine.forward([7] * question["read"]))
        return lambda: answer(question["answer"], question["tokens"], question["drafting"])

    print(json.dumps({"bytes": side.native.handle.bytes}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        job = work(question)
        behind = question.get("behind", 0)
        engine.rollback(min(engine.length, behind))
        if missing := behind - engine.length:
            engine.forward([7] * missing)
        start = time.perf_counter()
        tokens = job()
        print(json.dumps({"seconds": time.perf_counter() - start, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    # an editable install finds its own modules before those of PYTHONPATH
    sys.meta_path[:] = [finder for finder in sys.meta_path if not hasattr(finder, "known_source_files")]
    (pack if sys.argv[1] == "pack" else serve)(*sys.argv[2:])
