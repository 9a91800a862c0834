"""Every benchmark, one after the other, each in a process of its own.

    python benchmarks/all.py [--quick] [--record] [--only demo,pruning]

Hours on 2 cores; each benchmark ends within two. One that fails is named, and the others go on. The last line on stdout
is {"rows": [...]} with the rows of all, their names behind the benchmark's; the exit status is 1 where one failed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NAMES = (
    "generation", "simulation", "finetuning", "pruning", "speculation", "sparse_kernels", "demo", "decoding",
    "acceleration", "fourbit", "drafting", "serving", "neighbours", "files", "shapes",
)  # fmt: skip


def rows_of(name: str, options: list[str]) -> list[dict[str, Any]] | None:
    """The rows of the benchmark `name`, whose output is shown as it comes; None where it failed."""
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *options]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode:
        return None
    return [{**row, "name": f"{name}: {row['name']}"} for row in json.loads(last)["rows"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="minutes: the smallest model, a check only")
    parser.add_argument("--record", action="store_true", help="also write the results to benchmarks/results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default=",".join(NAMES), help="separated by commas")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"--only {unknown[0]!r}: there are {', '.join(NAMES)}")
    shared = [f"--{flag}" for flag in ("quick", "record") if getattr(options, flag)]
    shared += ["--threads", str(options.threads)]
    rows, failed = [], []
    for name in names:
        print(f"== {name}", flush=True)
        found = rows_of(name, shared)
        if found is None:
            failed.append(name)
        rows += found or []
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    print(json.dumps({"rows": rows}), flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
