"""Timings kept in docs/results as records of benchmarks/results, one file a timing.

    python docs/tools/speed_records.py

A kept timing is the result of `sparsedraft eval`; its machine, date and commit lie in the run's origins.json. A record
has the form that benchmarks/ writes: benchmark, command, machine, date, commit, rows, figures. In `rows`, `ratio` is
speed with the drafter / speed of the target alone, and the goal is 1: a drafter must not make its target slower.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS, RECORDS = ROOT / "docs" / "results", ROOT / "benchmarks" / "results"
CPU = "AMD EPYC (Zen 4: AVX-512, no AMX), virtual, shared host"  # of every kept run: docs/RESULTS.md
RUN = "sparsedraft run docs/results/{run}/recipe.yaml --out runs/{run}"
EVAL = "sparsedraft eval in runs/{run}: see docs/RESULTS.md"
TIMINGS = {  # the name of the record: the run, its timing, the command
    "demo-decoding": ("demo", "speed", RUN),
    "qwen-coder-decoding": ("qwen-coder", "speed", RUN),
    "qwen-coder-answers": ("qwen-coder", "speed-256", EVAL),
    "qwen-coder-long-decoding": ("qwen-coder-long", "speed-64-again", EVAL),
    "qwen-coder-long-answers": ("qwen-coder-long", "speed-256", EVAL),
    "uag-decoding": ("uag", "speed", RUN),
}


def record(name: str, run: str, timing: str, command: str) -> dict[str, Any]:
    """The record `name` of one kept timing. FileNotFoundError where the run does not keep it."""
    result = json.loads((RESULTS / run / timing / "result.json").read_text(encoding="utf-8"))
    origin = json.loads((RESULTS / run / "origins.json").read_text(encoding="utf-8"))[timing]
    figures = {drafter["name"]: speeds(drafter) for drafter in result["drafters"]}
    return {
        "benchmark": name,
        "command": command.format(run=run),
        "machine": {"cpu": CPU, **origin["host"]},
        "date": origin["finished"][:10],
        "commit": origin["commit"],
        "rows": [
            {"name": f"{drafter}: {what} / the target alone", "ratio": values[what]["speedup"], "goal": 1}
            for drafter, values in figures.items()
            for what in ("decoding", "whole answers")
        ],
        "figures": {
            "prompts": result["prompts"],
            "answers": result["sequences"],
            "tokens": result["target_tokens"],
            "drafters": figures,
        },
    }


def speeds(drafter: dict[str, Any]) -> dict[str, Any]:
    """What was measured at the K where decoding with `drafter` was the fastest."""
    k = max(drafter["k"], key=lambda k: drafter["k"][k]["measured"]["speedup"])
    measured = drafter["k"][k]["measured"]
    keys = ("speedup", "speedup_interval", "tokens_per_second", "target_tokens_per_second")
    return {
        "k": k,
        "mal": drafter["k"][k]["mal"],
        "sparsity": drafter["sparsity"],
        "pattern": drafter["pattern"],
        "decoding": {key: measured[key] for key in keys},
        "whole answers": {key: measured["end_to_end"][key] for key in keys},
    }


def main() -> None:
    RECORDS.mkdir(parents=True, exist_ok=True)
    for name, (run, timing, command) in TIMINGS.items():
        text = json.dumps(record(name, run, timing, command), indent=1, ensure_ascii=False)
        (RECORDS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
