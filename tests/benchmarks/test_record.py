"""The rows and records of benchmarks, and which of their files know which; nothing is timed here."""

import ast
import json
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import common
import record
from places import ROOT
from record import Table

FIELDS = ["benchmark", "command", "machine", "date", "commit", "rows", "figures"]


def test_a_ratio_is_better_when_larger_and_reached_at_its_goal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("toy")
    table.ratio("fast", 1.5, 1.2, tokens=3)
    table.limit("small", 2.0, 3.0, "GiB")
    table.limit("large", 4.0, 3.0, "GiB")
    table.limit("nothing", 0.0, 0.25)
    table.note("no goal", 7.0)
    table.close()
    reached = {row["name"]: row["ratio"] >= row["goal"] for row in table.rows}
    assert reached == {"fast": True, "small": True, "large": False, "nothing": True}
    assert [row["ratio"] for row in table.rows[:3]] == [1.5, 1.5, 0.75]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"rows": table.rows}
    assert all([*row] == ["name", "ratio", "goal"] for row in table.rows)
    assert table.figures["large"] == {"seen": 4.0, "limit": 3.0, "unit": "GiB"}
    assert table.figures["no goal"] == {"value": 7.0} and table.figures["fast"] == {"tokens": 3}


def test_a_record_says_where_and_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    table = Table("toy")
    table.ratio("fast", 1.5, 1.2)
    table.write(threads=2)
    (file,) = (tmp_path / "results").iterdir()
    found = json.loads(file.read_text())
    assert [*found] == FIELDS and found["rows"] == table.rows and found["benchmark"] == "toy"
    assert file.name.startswith("toy-") and file.name.endswith(f"-{found['date']}.json")
    assert {"cpu", "extensions", "cpus", "torch", "threads", "kernels"} <= {*found["machine"]}


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=lambda file: file.stem)
def test_records_under_version_control_have_the_same_form(file: Path) -> None:
    found = json.loads(file.read_text())
    assert [*found] == FIELDS and {"cpu", "cpus"} <= {*found["machine"]}
    assert all([*row] == ["name", "ratio", "goal"] for row in found["rows"])


def test_a_quick_check_is_not_recorded() -> None:
    options = common.parser("toy").parse_args(["--quick", "--record"])
    with pytest.raises(SystemExit, match="--quick is a check"):
        common.run("toy", options, lambda options, table: None)


@pytest.mark.parametrize("folder", ["benchmarks", "studies"])
def test_no_script_reaches_itself(folder: str) -> None:
    """Imports inside of functions count, too; and neither folder imports the other."""
    files = {file.stem: ast.parse(file.read_text()) for file in (ROOT / folder).glob("*.py")}
    other = {file.stem for file in (ROOT / {"benchmarks": "studies", "studies": "benchmarks"}[folder]).glob("*.py")}
    imports = {name: {root(node) for node in ast.walk(tree)} for name, tree in files.items()}
    assert all(not names & other for names in imports.values())
    graph = {name: names & {*files} for name, names in imports.items()}
    assert len([*TopologicalSorter(graph).static_order()]) == len(files)


def root(node: ast.AST) -> str | None:
    """The first name of the module that `node` imports."""
    if isinstance(node, ast.Import):
        return node.names[0].name.partition(".")[0]
    return (node.module or "").partition(".")[0] if isinstance(node, ast.ImportFrom) else None
