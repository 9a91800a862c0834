"""The whole demo in a process of its own: its speed-up, its wall time and its peak memory. About 20 minutes.

python benchmarks/demo.py [--quick]
"""

import argparse
import shutil
import time

from common import CACHE, ROOT, measured, parser, run
from record import Table

GAIN, MINUTES, GIB = 1.2, 25, 14  # goals: whole answers against the same target alone; the most of the others
QUICK = (  # a small part of the demo, of which nothing but wall time and memory is said
    "distill.again=2", "prune.tokens=1024", "prune.method=magnitude", "finetune.validation_prompts=2",
    "finetune.tokens=1024", "eval.limit=3", "eval.max_new_tokens=16", "speed.limit=1", "speed.max_new_tokens=16",
)  # fmt: skip


def work(options: argparse.Namespace, table: Table) -> None:
    out = CACHE / ("demo-quick" if options.quick else "demo")
    shutil.rmtree(out, ignore_errors=True)  # the wall time is that of the whole
    start = time.perf_counter()
    result, peak = measured("run", ROOT / "recipes/demo.yaml", "--out", out, *(QUICK if options.quick else ()))
    minutes = (time.perf_counter() - start) / 60
    table.limit("demo, wall time", minutes, MINUTES, "minutes")
    table.limit("demo, peak resident memory", peak, GIB, "GiB")
    ways = {
        drafter["name"]: figures["measured"]["end_to_end"]
        for drafter in result["speed"]["drafters"]
        for figures in drafter["k"].values()
    }
    name = max(ways, key=lambda name: ways[name]["speedup"])
    interval = ways[name]["speedup_interval"]
    table.ratio(
        "demo, whole answers against the target alone", ways[name]["speedup"], GAIN, drafter=name, interval=interval
    )


if __name__ == "__main__":
    run("demo", parser(__doc__).parse_args(), work)
