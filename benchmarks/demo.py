"""The whole demo in a process of its own: wall time, peak memory, and what its table must show."""

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import close, row, setup

ROOT = Path(__file__).parent.parent
GIB = 2**30


def main() -> list[dict]:
    out = ROOT / "runs" / "bench-demo"
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        "-c",
        "from sparsedraft.cli import main; main()",
        "run",
        "recipes/demo.yaml",
        "--out",
        str(out),
    ]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    minutes = (time.perf_counter() - start) / 60
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / GIB  # KiB on Linux
    mal = {d["name"]: d["k"]["5"]["mal"] for d in json.loads(done.stdout.splitlines()[-1])["drafters"]}
    return [
        row("demo, wall time", minutes, 15, unit="minutes", better="less"),
        row("demo, peak resident memory", peak, 6, unit="GiB", better="less"),
        row(
            "MAL (K=5) of SD² 50 % against layer-pruned + distilled",
            mal["sd2-50"] / mal["layer-pruned+distilled"],
            1.59,
        ),
        row("MAL (K=5) of SD² 50 % against one-shot 50 %", mal["sd2-50"] / mal["sparse-50"], 1.15),
    ]


if __name__ == "__main__":
    setup()
    close(main())
