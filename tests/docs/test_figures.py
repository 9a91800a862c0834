"""Figures on README come from stored results: the drawings from the records, the table from the kept runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import figures
import speed_records
import whole_answers

ROOT = Path(__file__).resolve().parents[2]
ROWS = {  # of README's table: the kept run and its drafter; its way in the kept answers, by bits
    "layer-pruned, self-distilled": ("qwen-coder-long", "layer-pruned+distilled", {}),
    "dense, as published": ("qwen-coder-long", "dense", {"int8": "dense, all aids", "int4": "dense, all aids"}),
    "**SD², 50 % of the weights zero**": (
        "qwen-coder-long",
        "sd2-50-65k",
        {"int8": "fine-tuned unstructured, all aids"},
    ),
    "2:4 (2 of each 4 weights zero), not trained": ("qwen-coder", "sparse-2:4", {"int4": "one-shot 2:4, all aids"}),
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


def stored(run: str) -> dict[str, dict[str, Any]]:
    """The drafters of the evaluation of a kept run."""
    file = ROOT / "docs" / "results" / run / "eval" / "result.json"
    return {d["name"]: d for d in json.loads(file.read_text(encoding="utf-8"))["drafters"]}


def against_the_target(bits: str, way: str | None) -> str:
    """Speed of the kept answers by this way against the target alone, as README has it; empty where there is none."""
    if way is None:
        return ""
    turns = json.loads((ROOT / "docs" / "results" / "drafting" / f"{bits}.json").read_text(encoding="utf-8"))
    return with_interval(*whole_answers.ratio(turns, way, "alone"), "x")


def test_readmes_table_is_that_of_the_kept_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| drafter |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == list(ROWS)
    for label, mal, macs, *speeds in rows:
        run, name, ways = ROWS[label]
        d = stored(run)[name]
        assert mal == with_interval(d["k"]["5"]["mal"], d["k"]["5"]["mal_interval"])
        assert macs == f"{d['macs_per_token'] / 1e6:.0f} M"
        for bits, speed in zip(("int8", "int4"), speeds, strict=True):
            assert speed.replace("**", "") == against_the_target(bits, ways.get(bits))


def with_interval(value: float, interval: list[float], unit: str = "") -> str:
    return f"{value:.2f}{unit} ({interval[0]:.2f}-{interval[1]:.2f})"
