"""Artifacts: made once, in one piece, resumed after a kill, refused where something else lies."""

import json
from pathlib import Path

import pytest

from sparsedraft import artifact
from sparsedraft.errors import UserError


def build(work: Path) -> dict[str, int]:
    (work / "data.txt").write_text("x")
    (work / ".scratch").write_text("y")
    return {"rows": 1}


def test_is_made_once_and_says_how(tmp_path: Path) -> None:
    calls = []

    def counted(work: Path) -> dict[str, int]:
        calls.append(1)
        return build(work)

    out = tmp_path / "a" / "out"
    first = artifact.make(out, "test", {"n": 1}, counted, seed=3)
    again = artifact.make(out, "test", {"n": 1}, counted, seed=3)
    assert first == again == {"rows": 1} and len(calls) == 1
    assert sorted(p.name for p in out.iterdir()) == ["data.txt", "provenance.json", "result.json"]
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["command"] == "test" and provenance["seed"] == 3 and "torch" in provenance["versions"]
    assert [p.name for p in out.parent.iterdir()] == ["out"], "no partial folder or lock is left"


def test_interrupted_build_gets_its_folder_back(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def dies(work: Path) -> dict[str, int]:
        (work / ".scratch").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifact.make(out, "test", {"n": 1}, dies)
    assert not out.exists()
    seen = artifact.make(out, "test", {"n": 1}, lambda work: {"half": (work / ".scratch").read_text()})
    assert seen == {"half": "half"}


def test_other_inputs_are_refused_by_name_and_overwritten_on_demand(tmp_path: Path) -> None:
    out = tmp_path / "out"
    artifact.make(out, "test", {"deep": {"n": 1}, "m": 1}, build)
    with pytest.raises(UserError, match=r"changed: deep\.n"):
        artifact.make(out, "test", {"deep": {"n": 2}, "m": 1}, build)
    with pytest.raises(UserError, match="changed: seed"):
        artifact.make(out, "test", {"deep": {"n": 1}, "m": 1}, build, seed=1)
    with pytest.raises(UserError, match="result of 'test'"):
        artifact.make(out, "other", {}, build)
    assert artifact.make(out, "test", {"deep": {"n": 2}, "m": 1}, lambda work: {"new": 1}, overwrite=True) == {"new": 1}
    assert not (out / "data.txt").exists()


def test_a_refusal_before_any_work_leaves_nothing_to_trip_over(tmp_path: Path) -> None:
    def refuses(work: Path, done: str = "") -> dict[str, int]:
        (work / ".journal").write_text(done)
        raise UserError("mend n")

    for n in (1, 2):
        with pytest.raises(UserError, match="mend n"):
            artifact.make(tmp_path / "out", "test", {"n": n}, refuses)
    with pytest.raises(UserError, match="mend n"):
        artifact.make(tmp_path / "out", "test", {"n": 3}, lambda work: refuses(work, "hours of work"))
    with pytest.raises(UserError, match="changed: n"):
        artifact.make(tmp_path / "out", "test", {"n": 4}, build)


def test_foreign_folder_and_concurrent_writer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        artifact.make(tmp_path / "mine", "test", {}, build)

    with pytest.raises(UserError, match="not ours"):
        artifact.make(tmp_path / "mine", "test", {}, build, overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()

    def nested(work: Path) -> dict[str, int]:
        with pytest.raises(UserError, match="another process"):
            artifact.make(tmp_path / "out", "test", {}, build)
        return {}

    artifact.make(tmp_path / "out", "test", {}, nested)


def test_paths_count_by_content_and_not_by_place(tmp_path: Path) -> None:
    for name, text in (("a", "same"), ("b", "same"), ("c", "different")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(text)
        (tmp_path / name / "provenance.json").write_text(name)
    out = tmp_path / "out"
    artifact.make(out, "test", {"model": tmp_path / "a"}, build)
    artifact.make(out, "test", {"model": tmp_path / "b"}, build)
    with pytest.raises(UserError, match="changed: model"):
        artifact.make(out, "test", {"model": tmp_path / "c"}, build)


def test_failed_atomic_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    artifact.write_json(file, {"a": 1})
    with pytest.raises(OSError, match="disk"), artifact.write_atomic(file) as temporary:
        temporary.write_text("half")
        raise OSError("disk")
    assert json.loads(file.read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1
