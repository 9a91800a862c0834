"""The whole demo in a process of its own: wall time, peak memory, and what its table must show. About 15 minutes.

python benchmarks/demo.py [--quick]
"""

import argparse
import shutil
import time

from common import CACHE, ROOT, measured, parser, run
from record import Table

QUICK = (  # a tenth of the demo, of which nothing but wall time and memory is said
    "distill.limit=12", "distill.max_new_tokens=16", "prune.tokens=1024", "prune.method=magnitude",
    "finetune.validation_prompts=2", "finetune.tokens=1024", "eval.limit=3", "eval.max_new_tokens=16", "speed.limit=1",
    "speed.max_new_tokens=16",
)  # fmt: skip


def work(options: argparse.Namespace, table: Table) -> None:
    out = CACHE / ("demo-quick" if options.quick else "demo")
    shutil.rmtree(out, ignore_errors=True)  # the wall time is that of the whole
    start = time.perf_counter()
    result, peak = measured("run", ROOT / "recipes/demo.yaml", "--out", out, *(QUICK if options.quick else ()))
    minutes = (time.perf_counter() - start) / 60
    mal = {drafter["name"]: drafter["k"]["5"]["mal"] for drafter in result["drafters"]}
    table.limit("demo, wall time", minutes, 15, "minutes")
    table.limit("demo, peak resident memory", peak, 6, "GiB")
    for other, goal in (("layer-pruned+distilled", 1.59), ("sparse-50", 1.15)):
        table.ratio(f"MAL (K=5) of sd2-50 / {other}", mal["sd2-50"] / mal[other], goal)


if __name__ == "__main__":
    run("demo", parser(__doc__).parse_args(), work)
