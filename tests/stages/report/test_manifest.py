"""The manifest of a run: what it lists while the run grows, and what it may not name."""

import json
from pathlib import Path

import pytest

from evaluations import RESULT
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_as
from sparsedraft.stages.report.load import load
from sparsedraft.stages.report.manifest import NAME, Drafter, Manifest, baseline_of, parts_at, write
from sparsedraft.stages.report.tables import headline


def make(run: Path, folder: str, name: str = "result.json", text: str = "{}") -> None:
    (run / folder).mkdir(parents=True, exist_ok=True)
    (run / folder / name).write_text(text)


def listed(run: Path, parts: list[str], names: list[str]) -> Manifest:
    drafters = [Drafter.at(run, name, [f"drafters/{name}/pruned"], f"packed/{name}") for name in names]
    return Manifest(drafter=None, baseline=None, parts=parts_at(run, parts), drafters=drafters)


def test_it_lists_what_exists(tmp_path: Path) -> None:
    make(tmp_path, "eval", "example.json")
    make(tmp_path, "drafters/a/pruned", "provenance.json")
    write(tmp_path, listed(tmp_path, ["eval", "speed"], ["a", "b"]), finished=True)
    found = json.loads((tmp_path / NAME).read_text())
    assert found["parts"] == {"eval": {"folder": "eval", "files": {"example": "eval/example.json"}}}
    assert [len(drafter["stages"]) for drafter in found["drafters"]] == [1, 0]
    assert found["drafters"][0]["packed"] is None
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [NAME], "no temporary file stays"


def test_a_growing_run_keeps_what_was_listed_until_it_is_finished(tmp_path: Path) -> None:
    for folder in ("eval", "sampled", "drafters/a/pruned", "drafters/b/pruned"):
        make(tmp_path, folder)
    write(tmp_path, listed(tmp_path, ["eval", "sampled"], ["a"]), finished=True)
    for finished, parts, names in ((False, {"eval", "sampled"}, {"a", "b"}), (True, {"eval"}, {"b"})):
        write(tmp_path, listed(tmp_path, ["eval"], ["b"]), finished=finished)
        found = read_as(tmp_path / NAME, Manifest)
        assert ({*found.parts}, {drafter.name for drafter in found.drafters}) == (parts, names)


def test_a_damaged_one_is_replaced_by_a_run_and_a_sentence_for_a_report(tmp_path: Path) -> None:
    make(tmp_path, "eval", text=json.dumps(RESULT))
    for damaged in ("{", '{"version": 2}', '{"drafter": null, "baseline": null, "parts": {"eval": {"folder": "../x"'):
        (tmp_path / NAME).write_text(damaged)
        with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
            load(tmp_path)
    write(tmp_path, listed(tmp_path, ["eval"], []), finished=False)
    assert load(tmp_path).result["target"] == "some/target"


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/result.json", "eval/../../x"])
def test_it_names_nothing_outside_the_run(path: str, tmp_path: Path) -> None:
    make(tmp_path, "eval", text=json.dumps(RESULT))
    found = listed(tmp_path, ["eval"], []).model_dump()
    found["parts"]["distilled"] = {"folder": "distilled", "files": {"result": path}}
    (tmp_path / NAME).write_text(json.dumps(found))
    with pytest.raises(UserError, match="does not lie in the run"):
        load(tmp_path)


def test_the_headlines_baseline() -> None:
    """Named by the recipe, else the layer-pruned one if there is one, as in runs of before recipes could name it."""
    names = ["dense", "layer-pruned+distilled"]
    assert baseline_of({}, names) == baseline_of({"baseline": None}, names) == names[1]
    assert baseline_of({"baseline": "dense"}, names) == "dense" and baseline_of({}, ["dense"]) is None
    assert headline(RESULT, "sd2-50") == (
        "sd2-50 brings 2.90 tokens a step at K = 5, 1.71 times as many as layer-pruned+distilled (1.70)."
    )
