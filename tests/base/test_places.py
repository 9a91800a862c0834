"""What --overwrite may replace, and what lies in the way of an artifact: nothing that is not its own is lost."""

import itertools
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inside import call
from sparsedraft.base import artifact, places
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.models import shards
from sparsedraft.stages.finetune.stage import _free

STAGES = ("distill", "prune", "drop-layers", "finetune", "eval", "tasks", "pack", "report")


def build(work: Path) -> dict[str, int]:
    (work / "data.txt").write_text("x")
    return {"rows": 1}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def killed(out: Path, command: str, inputs: dict[str, object]) -> None:
    def dies(work: Path) -> dict[str, int]:
        (work / ".journal").write_text("hours of work")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifact.make(out, command, inputs, dies)


@pytest.fixture
def drafter(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A drafter that `prune` made, as far as its provenance tells."""

    def copied(work: Path) -> dict[str, int]:
        shutil.copytree(tiny_checkpoint, work, dirs_exist_ok=True)
        return {}

    artifact.make(tmp_path / "drafter", "prune", {}, copied)
    return tmp_path / "drafter"


def test_a_stage_replaces_its_own_artifacts_alone(tmp_path: Path) -> None:
    for old, new in itertools.permutations(STAGES, 2):
        out = tmp_path / f"{old}-{new}"
        artifact.make(out, old, {"n": 1}, build)
        before = contents(out)
        with pytest.raises(UserError, match=f"holds the result of '{old}'"):
            artifact.make(out, new, {"n": 1}, build, overwrite=True)
        assert contents(out) == before
        unfinished = tmp_path / f"{old}-{new}-unfinished"
        killed(unfinished, old, {"n": 1})
        with pytest.raises(UserError, match=f"has an unfinished run of '{old}': delete"):
            artifact.make(unfinished, new, {"n": 1}, build, overwrite=True)
        assert (places.partial_of(unfinished) / ".journal").read_text() == "hours of work"
    for stage in STAGES:
        artifact.make(tmp_path / stage, stage, {"n": 1}, build)
        assert artifact.make(tmp_path / stage, stage, {"n": 2}, lambda work: {"new": 1}, overwrite=True) == {"new": 1}


def test_no_command_overwrites_a_drafter_or_what_it_reads(
    drafter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, prompts, before = tmp_path / "model", tmp_path / "prompts.jsonl", contents(drafter)
    shutil.copytree(drafter, model)
    prompts.write_text(json.dumps({"prompt": "the quick brown fox"}) + "\n")
    link = tmp_path / "link"
    link.symlink_to(drafter)
    short = ("--max-new-tokens", 4, "--batch-size", 1)
    cases: list[tuple[Any, ...]] = [
        ("eval", model, model, "--prompts", prompts, *short),
        ("eval", model, drafter, "--prompts", prompts, *short),
        ("eval", model, link, "--prompts", prompts, *short),
        ("distill", model, prompts, "--allow-overlap", *short),
        ("pack", drafter),
        ("pack", model),
        ("drop-layers", model, "--layers", 1, "--calibration", "demo:train", "--tokens", 64, "--sequence-length", 32),
        ("prune", drafter, "--calibration", "demo:train", "--tokens", 64, "--sequence-length", 32),
        ("prune", link, "--calibration", "demo:train", "--tokens", 64, "--sequence-length", 32),
    ]
    for words in cases:
        assert call(monkeypatch, *words, "--out", drafter, "--overwrite") == 2, words
        said = " ".join(capsys.readouterr().err.split())
        assert "holds the result of 'prune'" in said or "lies in the input" in said, said
        assert contents(drafter) == before, words


def test_what_is_read_is_never_inside_what_is_made(tmp_path: Path) -> None:
    out, link, linked = tmp_path / "out", tmp_path / "link", tmp_path / "linked"
    artifact.make(out, "test", {"n": 1}, build)
    link.symlink_to(out)
    linked.mkdir()
    (linked / "weights").symlink_to(out / "data.txt")
    before = contents(out)
    for value, inside in itertools.product((out, out / "data.txt", link, link / "data.txt", linked), (True, False)):
        inputs: dict[str, object] = {"n": 2, **({"drafters": {"first": [value]}} if inside else {})}
        with pytest.raises(UserError, match=r"holds the input|lies in the input"):
            artifact.make(out, "test", inputs, build, overwrite=True, reads=() if inside else (None, str(value)))
        assert contents(out) == before
    with pytest.raises(UserError, match=r"lies in the input drafters.first"):
        artifact.make(link / "deep" / "new", "test", {"drafters": {"first": out}}, build)
    artifact.make(out, "test", {"n": 2}, build, overwrite=True, reads=("owner/model", "demo:eval", tmp_path / "none"))


def test_other_artifacts_inside_are_not_deleted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    artifact.make(out, "distill", {"n": 1}, build)
    artifact.make(out / "report", "report", {"n": 1}, build)
    artifact.make(out, "distill", {"n": 2}, build, overwrite=True)  # a report follows from what it lies in
    artifact.make(out / "deep" / "pruned", "prune", {"n": 1}, build)
    with pytest.raises(UserError, match=r"also holds .*/deep/pruned"):
        artifact.make(out, "distill", {"n": 3}, build, overwrite=True)
    assert (out / "deep" / "pruned" / "data.txt").exists()


def test_what_another_process_has_just_finished_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real = tmp_path / "out", artifact.locked

    @contextmanager
    def late(place: Path):
        with monkeypatch.context() as patch:
            patch.setattr(artifact, "locked", real)
            artifact.make(place, "prune", {"n": 1}, build)
        with real(place):
            yield

    monkeypatch.setattr(artifact, "locked", late)
    with pytest.raises(UserError, match="holds the result of 'prune'"):
        artifact.make(out, "eval", {"n": 1}, lambda work: {"rows": 2})
    assert (out / "data.txt").exists()


def test_names_in_the_way_are_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    for name, overwrite in itertools.product((".out.partial", ".out.old", ".out.lock"), (True, False)):
        for target in (mine, mine / "thesis.tex", tmp_path / "none"):
            (tmp_path / name).symlink_to(target)
            with pytest.raises(UserError, match=r"is a symbolic link|not ours"):
                artifact.make(tmp_path / "out", "test", {}, build, overwrite=overwrite)
            (tmp_path / name).unlink()
        assert contents(mine) == {"thesis.tex": b"years of work"}
    for name in (".out.partial", ".out.old"):
        shutil.copytree(mine, tmp_path / name)
        with pytest.raises(UserError, match="in the way of --out"):
            artifact.make(tmp_path / "out", "test", {}, build, overwrite=True)
        assert contents(tmp_path / name) == {"thesis.tex": b"years of work"}
        shutil.rmtree(tmp_path / name)
    (tmp_path / ".out.lock").write_text("a note")
    with pytest.raises(UserError, match="not ours"):
        artifact.make(tmp_path / "out", "test", {}, build)
    assert (tmp_path / ".out.lock").read_text() == "a note"
    (tmp_path / ".out.lock").unlink()
    killed(tmp_path / "out", "test", {})
    (tmp_path / ".out.partial" / ".rows.jsonl").symlink_to(mine / "thesis.tex")
    with pytest.raises(UserError, match="symbolic link, which no run leaves"):
        artifact.make(tmp_path / "out", "test", {}, build)


def test_atomic_writing_follows_no_link(tmp_path: Path) -> None:
    secret, file = tmp_path / "secret", tmp_path / "x.json"
    secret.write_text("mine")
    (tmp_path / ".x.json.tmp").symlink_to(secret)
    write_json(file, {"a": 1})
    assert secret.read_text() == "mine" and json.loads(file.read_text()) == {"a": 1} and not file.is_symlink()


def test_side_files_are_the_checkpoints_own(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, secret = tmp_path / "hub" / "models--tiny--llama", tmp_path / "secret"
    secret.write_text("the user's own")
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny_checkpoint.iterdir())):
        shutil.copy(file, cache / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    work = tmp_path / "work"
    work.mkdir()
    shards.copy_side_files(snapshot, work)
    wanted = {file.name for file in tiny_checkpoint.iterdir() if file.suffix in (".json", ".jinja")}
    assert {name: (tiny_checkpoint / name).read_bytes() for name in wanted} == contents(work)
    local = tmp_path / "local"  # where a download was told to put the files, and left the large ones in the cache
    local.mkdir()
    for file in snapshot.iterdir():
        (local / file.name).symlink_to(file.resolve())
    assert {file.name for file in shards.side_files(local)} == wanted

    calls = (
        ("pack",),
        ("prune", "--calibration", "demo:train", "--tokens", 64, "--sequence-length", 32),
        ("drop-layers", "--layers", 1, "--calibration", "demo:train", "--tokens", 64, "--sequence-length", 32),
    )
    for target, (name, *more) in itertools.product((secret, tmp_path / "none", "notes.txt"), calls):
        (snapshot / "notes.txt").symlink_to(target)
        assert call(monkeypatch, name, snapshot, *more, "--out", tmp_path / "out") == 2
        assert "notes.txt is a link to" in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()
        os.unlink(snapshot / "notes.txt")
    assert call(monkeypatch, "pack", snapshot, "--out", tmp_path / "out") == 0


def test_last_good_weights_take_the_place_of_no_others(tmp_path: Path) -> None:
    out, place = tmp_path / "out", tmp_path / "out.last-good"
    assert _free(out, {}) == place
    artifact.make(place, "finetune", {"n": 1, "step": 3}, build)
    assert _free(out, {}) == place, "those of an earlier try"
    assert _free(out, {"drafter": place}).name == "out.last-good-2", "it is what this one started from"
    shutil.rmtree(place)
    artifact.make(place, "finetune", {"n": 1}, build)
    assert _free(out, {}).name == "out.last-good-2"


def test_a_run_makes_nothing_where_its_recipe_reads(drafter: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run = tmp_path / "run"
    (run / "drafters" / "half").mkdir(parents=True)
    shutil.copytree(drafter, run / "drafters" / "half" / "pruned")
    (run / "recipe.yaml").write_text(f"target: {run}/drafters/half/pruned\ndrafters: [{{name: half, prune: {{}}}}]\n")
    before = contents(run)
    assert call(monkeypatch, "run", run / "recipe.yaml", "--out", run, "--overwrite") == 2
    assert "holds the input" in " ".join(capsys.readouterr().err.split())
    assert contents(run) == before
