"""The whole demo in a process of its own: wall time, peak memory, and what its table must show."""

import shutil
import time

from common import ROOT, close, measured, row, setup


def main() -> list[dict]:
    out = ROOT / "runs" / "bench-demo"
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    result, peak = measured("run", ROOT / "recipes/demo.yaml", "--out", out)
    minutes = (time.perf_counter() - start) / 60
    mal = {d["name"]: d["k"]["5"]["mal"] for d in result["drafters"]}
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
