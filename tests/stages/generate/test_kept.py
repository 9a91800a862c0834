"""What `auto` learned outlives the process: in a small file that may be damaged, foreign, or not wanted."""

import json
from pathlib import Path

import pytest

import sparsedraft
from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.kept import KeptState
from sparsedraft.speculate.policy.policies import Auto
from sparsedraft.speculate.policy.protocol import Outcome
from sparsedraft.stages.generate import kept
from sparsedraft.stages.generate.kept import KeptFile, key_of
from sparsedraft.stages.generate.measured import Measured
from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.writers.loaded import LoadedModel
from tiny import build_llama, build_tokenizer

PROMPT, NEW = "the quick brown fox", 24


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept files, of this test alone."""
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "policy"


def write(model: Path, **options: object) -> str:
    return sparsedraft.generate(model, PROMPT, drafter=model, max_new_tokens=NEW, **options).text


def state(folder: Path) -> KeptState:
    (file,) = folder.iterdir()
    return KeptState.model_validate_json(file.read_bytes())


def test_a_run_adds_to_what_the_last_one_learned(tiny_checkpoint: Path, folder: Path) -> None:
    text = write(tiny_checkpoint)
    first = state(folder)
    assert first.lengths == [[first.lengths[0][0], 2 * NEW]], "cut, so longer"
    assert first.costs[1].plain and first.costs[1].target_reading.weight > 0
    assert write(tiny_checkpoint) == text and len(state(folder).lengths) == 2
    before = state(folder)
    assert write(tiny_checkpoint, learned="off") == text and state(folder) == before
    write(tiny_checkpoint, learned="forget")
    assert len(state(folder).lengths) == 1


def test_a_stream_that_is_left_keeps_what_it_learned(tiny_checkpoint: Path, folder: Path) -> None:
    pieces = sparsedraft.generate(tiny_checkpoint, PROMPT, drafter=tiny_checkpoint, max_new_tokens=NEW, stream=True)
    for _ in range(4):
        next(pieces)
    pieces.close()
    assert state(folder).costs[1].plain and not state(folder).lengths, "its length is not known"


@pytest.mark.parametrize("options", [{"k": 2}, {"policy": "confidence"}, {"temperature": 1.0, "seed": 3}])
def test_other_policies_keep_nothing(tiny_checkpoint: Path, folder: Path, options: dict) -> None:
    write(tiny_checkpoint, **options)
    assert not folder.exists()


def harm(good: dict, how: str) -> str:
    costs = good["costs"]["1"]
    if how == "cut":
        return json.dumps(good)[:-20]
    if how == "another version":
        good["version"] = 1
    elif how == "a field too many":
        good["more"] = 1
    elif how == "a field too few":
        del good["usual"]
    elif how == "not a number":
        costs["plain"][0] = float("nan")
    elif how == "infinite":
        good["saved"] = float("inf")
    elif how == "negative":
        costs["draft"] = [-1.0]
    elif how == "a plain step of no time":
        costs["plain"][0] = 0.0
    elif how == "a share above 1":
        good["usual"] = {"sum": 3.0, "weight": 2.0}
    elif how == "too many":
        good["lengths"] = [[5, 5]] * 33
    elif how == "a length of one number":
        good["lengths"] = [[5]]
    elif how == "text for a number":
        costs["draft"] = ["0.1"]
    elif how == "too large":
        return json.dumps(good) + " " * kept.LARGEST
    return json.dumps(good)


HARMS = (
    "cut", "another version", "a field too many", "a field too few", "not a number", "infinite", "negative",
    "a plain step of no time", "a share above 1", "too many", "a length of one number", "text for a number",
    "too large",
)  # fmt: skip


@pytest.mark.parametrize("how", HARMS)
def test_what_is_damaged_or_foreign_is_not_there(tiny_checkpoint: Path, folder: Path, how: str) -> None:
    text = write(tiny_checkpoint)
    (file,) = folder.iterdir()
    file.write_text(harm(json.loads(file.read_text()), how))
    if how != "too large":
        with pytest.raises(ValueError):
            KeptState.model_validate_json(file.read_bytes())
    assert write(tiny_checkpoint) == text
    assert len(state(folder).lengths) == 1, "begun anew"


def test_where_it_cannot_be_kept_the_text_is_written(tiny_checkpoint: Path, folder: Path, capsys) -> None:
    folder.parent.mkdir()
    folder.write_text("in the way")
    assert write(tiny_checkpoint) and folder.read_text() == "in the way"
    assert "not kept" in capsys.readouterr().err


def test_each_pair_and_way_to_draw_has_its_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    build_llama(1).save_pretrained(other)
    build_tokenizer().save_pretrained(other)
    p, q = LoadedModel.load(tiny_checkpoint), LoadedModel.load(other)

    def key(target: LoadedModel, drafter: object, **more: object) -> object:
        options = GenerateOptions(target="t", prompt=("x",), drafter="d", **more)
        return json.dumps(key_of(Pair.of(target, drafter, "auto", Sampling()), options))

    keys = [
        key(p, q), key(q, p), key(p, p), key(p, "lookup"), key(p, q, temperature=1.0),
        key(p, q, temperature=1.0, verification="token"),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys) and "null" not in keys
    assert key(LoadedModel.load(tiny_checkpoint), LoadedModel.load(other)) == keys[0]
    assert key(p, q, verification="token") == keys[0], "greedy texts are not verified by chance"
    assert key(LoadedModel.of(build_llama(), build_tokenizer()), q) == "null", "in memory: it cannot be known again"


def test_the_oldest_make_room(tiny_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    for i in range(6):
        (folder / f"{i}.json").write_text("{}")
        (folder / f"{i}.json").touch()
    monkeypatch.setattr(kept, "MOST", 3)
    write(tiny_checkpoint)
    assert len([*folder.iterdir()]) == 3


def test_a_kept_file_is_whole_or_not_there(tiny_checkpoint: Path, folder: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(kept.os, "replace", full)
    write(tiny_checkpoint)
    assert not [*folder.iterdir()], "no file under a temporary name"


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({}, "auto"),
        ({"temperature": 0.8}, "auto"),
        ({"seed": 1}, "auto"),
        ({"temperature": 0.8, "seed": 0}, "constant"),
        ({"k": 3}, "constant"),
        ({"tree": 2}, "constant"),
        ({"drafter": None}, "constant"),
        ({"k": 3, "policy": "auto"}, "auto"),
        ({"temperature": 0.8, "seed": 1, "policy": "auto"}, "auto"),
        ({"policy": "bandit"}, "bandit"),
    ],
)
def test_k_stays_constant_where_a_text_must_come_again(given: dict, policy: str) -> None:
    options = {"target": "t", "prompt": ("x",), "drafter": "d", **given}
    assert GenerateOptions(**options).chosen_policy == policy


def test_a_seed_gives_the_same_sampled_text_again(tiny_checkpoint: Path, folder: Path) -> None:
    first, again = (write(tiny_checkpoint, temperature=1.0, seed=7) for _ in range(2))
    assert first == again


def test_the_speed_up_by_hand() -> None:
    """A prompt of 3 seconds, 2 of the drafter's; plain steps of 1 second and one of 9, which a stall may be; ten tokens
    in two steps."""
    measured = Measured(Auto(8))
    assert measured.estimated_speedup is None
    measured.observe(Outcome(0, 0, 1, 0.0, 3.0, begins=True, prompt=True, read=50, room=30))
    assert measured.estimated_speedup == 1.0, "nothing came after the prompt"
    measured.observe(Outcome(4, 4, 5, 2.5, 3.5, asked=True, prompt=True, late=51, room=25))
    assert measured.estimated_speedup is None and measured.plain_steps == 0
    for took in (1.0, 9.0, 1.0):
        measured.observe(Outcome(0, 0, 1, 0.0, took, room=20))
    measured.observe(Outcome(4, 4, 5, 0.5, 1.5, asked=True))
    assert measured.plain_steps == 3
    assert measured.estimated_speedup == pytest.approx((3 + 13 * 1) / (3 + 3.5 + 11 + 1.5))


def test_the_file_of_a_pair_is_named_by_its_key(tiny_checkpoint: Path, folder: Path) -> None:
    model = LoadedModel.load(tiny_checkpoint)
    pair = Pair.of(model, model, "auto", Sampling())
    options = GenerateOptions(target="t", prompt=("x",), drafter="d")
    assert KeptFile(pair, options).path == KeptFile(pair, options).path
    assert KeptFile(pair, options.model_copy(update={"learned": "off"})).path is None
