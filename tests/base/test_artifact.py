"""Artifacts: made once, in one piece, resumed after a kill, refused where something else lies."""

import json
from pathlib import Path

import pytest

from sparsedraft.base import artifact
from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.base.jsonfiles import write_json

GROWING = artifact.Tolerance(grows="parts")


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


def test_what_grows_is_made_again_beside_the_old_one(tmp_path: Path) -> None:
    out, parts = tmp_path / "out", {"a": 1, "b": {"x": 2}}
    artifact.make(out, "test", {"parts": parts, "m": 1}, build, tolerance=GROWING)

    def from_old(work: Path) -> dict[str, str]:
        return {"old": (out / "data.txt").read_text()}

    for inputs, seed in (
        ({"parts": {**parts, "a": 2}, "m": 1}, 0),
        ({"parts": {"a": 1, "c": 3}, "m": 1}, 0),
        ({"parts": {**parts, "c": 3}, "m": 2}, 0),
        ({"parts": {**parts, "c": 3}, "m": 1}, 1),
    ):
        with pytest.raises(UserError, match="made with other inputs"):
            artifact.make(out, "test", inputs, from_old, seed=seed, tolerance=GROWING)
    with pytest.raises(UserError, match=r"changed: parts\.c"):
        artifact.make(out, "test", {"parts": {**parts, "c": 3}, "m": 1}, from_old)
    grown = artifact.make(out, "test", {"parts": {**parts, "c": 3}, "m": 1}, from_old, tolerance=GROWING)
    assert grown == {"old": "x"} and not (out / "data.txt").exists()
    provenance = artifact.read_provenance(out)
    assert provenance is not None and provenance["grown_from"]["finished"] <= provenance["finished"]


def test_an_interrupted_growth_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def make(parts: str, build, **options) -> dict:
        return artifact.make(out, "test", {"parts": dict.fromkeys(parts, 1)}, build, tolerance=GROWING, **options)

    def dies(work: Path) -> dict[str, int]:
        (work / ".scratch").write_text("half")
        raise KeyboardInterrupt

    def found(work: Path) -> dict[str, bool]:
        return {"half": (work / ".scratch").exists()}

    first = make("a", build)
    for parts, options, half in (("ab", {}, True), ("abc", {}, True), ("abcd", {"overwrite": True}, False)):
        with pytest.raises(KeyboardInterrupt):
            make("ab" if parts == "abc" else parts, dies)
        assert artifact._result(out) == first, "the finished one stands until the new one is whole"
        with pytest.raises(UserError, match=r"unfinished run .* delete .*\.out\.partial"):
            make("ax", found)
        assert make(parts, found, **options) == {"half": half}
        first = make("a", build, overwrite=True)
        provenance = artifact.read_provenance(out)
        assert provenance is not None and "grown_from" not in provenance


def test_a_kill_between_the_two_renames_costs_nothing(tmp_path: Path, monkeypatch) -> None:
    out, replace = tmp_path / "out", artifact.os.replace
    artifact.make(out, "test", {"n": 1}, build)

    def killed(old: Path, new: Path) -> None:
        if new == out:
            raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(artifact.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            artifact.make(out, "test", {"n": 2}, lambda work: {"rows": 2}, overwrite=True)
    again = artifact.make(out, "test", {"n": 2}, lambda work: pytest.fail("all was built already"), overwrite=True)
    assert again == {"rows": 2} and [file.name for file in tmp_path.iterdir()] == ["out"]


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


def test_a_kill_while_scratch_goes_away_costs_nothing(tmp_path: Path, monkeypatch) -> None:
    def build(work: Path) -> dict[str, int]:
        (work / ".deep").mkdir()
        (work / ".deep" / "scratch").write_text("y")
        return {"rows": 1}

    def killed(folder: Path) -> None:
        (Path(folder) / "scratch").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifact.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            artifact.make(tmp_path / "out", "test", {"n": 1}, build)
    assert not (tmp_path / "out").exists()

    def again(work: Path) -> dict[str, int]:
        raise AssertionError("all was built already")

    assert artifact.make(tmp_path / "out", "test", {"n": 1}, again) == {"rows": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_interrupted_overwrite_goes_on_and_other_inputs_drop_it_on_demand(tmp_path: Path) -> None:
    def dies(work: Path) -> dict[str, int]:
        (work / ".journal").write_text("half")
        raise KeyboardInterrupt

    out = tmp_path / "out"
    artifact.make(out, "test", {"n": 1}, build)
    with pytest.raises(KeyboardInterrupt):
        artifact.make(out, "test", {"n": 2}, dies, overwrite=True)
    seen = artifact.make(out, "test", {"n": 2}, lambda w: {"read": (w / ".journal").read_text()}, overwrite=True)
    assert seen == {"read": "half"}

    out = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        artifact.make(out, "test", {"n": 2}, dies)
    with pytest.raises(UserError, match=r"--out .*/new has an unfinished run .* \(changed: n\): pass --overwrite"):
        artifact.make(out, "test", {"n": 3}, build)
    assert artifact.make(out, "test", {"n": 3}, lambda w: {"left": (w / ".journal").exists()}, overwrite=True) == {
        "left": False
    }


def test_places_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for out, message in (
        (tmp_path / "model" / "out", "lies in the input model"),
        (tmp_path / "model", "lies in the input model"),
        (Path("/proc/none"), "cannot be written"),
        (tmp_path / ("x" * 300), "too long a name"),
    ):
        with pytest.raises(UserError, match=message):
            artifact.make(out, "test", {"model": tmp_path / "model"}, build, overwrite=True)


def test_a_damaged_result_says_so(tmp_path: Path) -> None:
    artifact.make(tmp_path / "out", "test", {}, build)
    (tmp_path / "out" / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json cannot be read .* make it again with --overwrite"):
        artifact.make(tmp_path / "out", "test", {}, build)
    (tmp_path / "out" / "provenance.json").write_text("[]")
    with pytest.raises(UserError, match="holds something else"):
        artifact.make(tmp_path / "out", "test", {}, build)


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


def test_a_lock_that_its_holder_has_just_removed_is_not_held(tmp_path: Path, monkeypatch) -> None:
    """Between opening the file and locking it: the name may be another's lock by now."""
    import fcntl

    lock, locked = fcntl.flock, []

    def late(file, how: int) -> None:
        (tmp_path / ".out.lock").unlink()
        lock(file, how)
        locked.append(file)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        with pytest.raises(UserError, match="another process"):
            artifact.make(tmp_path / "out", "test", {}, build)
    assert locked and not (tmp_path / "out").exists()
    artifact.make(tmp_path / "out", "test", {}, build)


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
    write_json(file, {"a": 1})
    with pytest.raises(OSError, match="disk"), write_atomic(file) as temporary:
        temporary.write_text("half")
        raise OSError("disk")
    assert json.loads(file.read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1
