"""Figures on README come from stored results: the drawings from the records, the table from the kept runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import figures
import speed_records

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    "layer-pruned, self-distilled": "layer-pruned+distilled",
    "dense, as published": "dense",
    "**SD², 50 % of the weights zero**": "sd2-50",
    "**SD², 2:4** (2 of each 4 weights zero)": "sd2-2:4",
}


def test_make_figures_draws_what_is_stored() -> None:
    drawn = {
        "overview": figures.overview(figures.record("qwen-coder-answers")),
        "sparsity": figures.over_sparsity(figures.record("qwen-coder-decoding")),
    }
    for name, svg in drawn.items():
        assert (ROOT / "docs" / "figures" / f"{name}.svg").read_text(encoding="utf-8") == svg, "run `make figures`"


@pytest.mark.parametrize("name", speed_records.TIMINGS)
def test_a_record_says_what_the_kept_run_says(name: str) -> None:
    stored = json.loads((speed_records.RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    assert stored == speed_records.record(name, *speed_records.TIMINGS[name])


def test_every_record_has_machine_date_commit_and_rows_with_goals() -> None:
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        found = json.loads(file.read_text(encoding="utf-8"))
        assert found["machine"]["cpu"] and re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"]) and found["commit"]
        assert all(set(row) >= {"name", "ratio", "goal"} for row in found["rows"])


def stored(part: str) -> dict[str, dict[str, Any]]:
    """The drafters of an evaluation of the kept Qwen run."""
    file = ROOT / "docs" / "results" / "qwen-coder" / part / "result.json"
    return {d["name"]: d for d in json.loads(file.read_text(encoding="utf-8"))["drafters"]}


def test_readmes_table_is_that_of_the_kept_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| drafter |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == list(ROWS)
    acceptance, answers = stored("eval"), stored("speed-256")
    for label, mal, macs, speed in rows:
        d, timed = acceptance[ROWS[label]], answers[ROWS[label]]["k"]["2"]["measured"]["end_to_end"]
        assert mal == with_interval(d["k"]["5"]["mal"], d["k"]["5"]["mal_interval"])
        assert macs == f"{d['macs_per_token'] / 1e6:.0f} M"
        assert speed == with_interval(timed["speedup"], timed["speedup_interval"], "x")


def with_interval(value: float, interval: list[float], unit: str = "") -> str:
    return f"{value:.2f}{unit} ({interval[0]:.2f}-{interval[1]:.2f})"
