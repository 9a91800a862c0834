"""An evaluation that was interrupted goes on; a finished one takes more drafters."""

import json
import shutil
from pathlib import Path

import pytest

from evaluated import GREEDY, raw
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears
from stages import evaluate_to
from timeless import timeless


def test_interrupted_evaluation_goes_on(models, tmp_path: Path, monkeypatch) -> None:
    from sparsedraft.stages.evaluate import rows

    target, drafters = models
    whole = evaluate_to(tmp_path / "whole", target, drafters, "demo:eval", GREEDY)
    original, calls = rows.Measurement._run_loop, []

    def dies(self, *args):
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(rows.Measurement, "_run_loop", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate_to(tmp_path / "cut", target, drafters, "demo:eval", GREEDY)
    again = evaluate_to(tmp_path / "cut", target, drafters, "demo:eval", GREEDY)
    assert timeless(again["drafters"]) == timeless(whole["drafters"])
    assert len(calls) == 1 + 4 * whole["sequences"], (
        "no finished sequence is decoded again: two drafters, the target beside"
    )
    assert raw(tmp_path / "cut") == raw(tmp_path / "whole")


@pytest.mark.parametrize("changed", [{"simulate": True}, {}, {"simulate": True, "temperature": 1.0}], ids=str)
def test_a_finished_evaluation_takes_more_drafters(models, tmp_path: Path, monkeypatch, changed: dict) -> None:
    from sparsedraft.stages.evaluate import rows

    target, drafters = models
    options = dict(GREEDY, limit=4, **changed)
    whole = evaluate_to(tmp_path / "whole", target, drafters, "demo:eval", options)
    evaluate_to(tmp_path / "grown", target, drafters[1:], "demo:eval", options)
    before = {file.name: file.read_bytes() for file in (tmp_path / "grown").iterdir()}
    broken = tmp_path / "broken"
    shutil.copytree(drafters[0][1], broken)
    name = next(iter(decoder_linears(checkpoint.load(broken))))
    (broken / "sparsity.json").write_text(json.dumps({"pattern": "2:4", "sparsity": 0.5, "linears": {name: 1}}))
    for named, message in (
        ([*drafters[1:], ("broken", str(broken))], "lies"),
        ([("noisy", target)], r"changed: drafters\.noisy"),
        ([("self", target)], "changed: drafters"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_to(tmp_path / "grown", target, named, "demo:eval", options)
        assert {file.name: file.read_bytes() for file in (tmp_path / "grown").iterdir()} == before
        assert [*tmp_path.glob(".grown*")] == [], "a refused one leaves nothing in the way"

    asked, original = [], rows.Measurement.rows

    def noted(self, answers, done):
        asked.append((self.name, len(answers) - len(done)))
        return original(self, answers, done)

    monkeypatch.setattr(rows.Measurement, "rows", noted)
    monkeypatch.setattr("sparsedraft.writers.conversation.Responder.write", None)  # the target is not asked again
    grown = evaluate_to(tmp_path / "grown", target, drafters, "demo:eval", options)
    assert asked == [("self", whole["sequences"]), ("noisy", 0)]
    assert timeless(grown["drafters"]) == timeless(whole["drafters"])
    assert raw(tmp_path / "grown") == raw(tmp_path / "whole")
    monkeypatch.undo()
    asked.clear()
    monkeypatch.setattr(rows.Measurement, "rows", noted)
    evaluate_to(tmp_path / "grown", target, drafters, "demo:eval", options, overwrite=True)
    assert asked == [("self", whole["sequences"]), ("noisy", whole["sequences"])], "--overwrite takes nothing up"


def test_answers_of_another_evaluation_are_taken(models, tmp_path: Path, monkeypatch) -> None:
    """Whatever K and way of measuring: they are the target's. Those to other questions are refused."""
    target, drafters = models
    options = dict(GREEDY, limit=4)
    for simulate in (True, False):
        how = dict(options, simulate=simulate, k=[2])
        expected = evaluate_to(tmp_path / f"own-{simulate}", target, drafters, "demo:eval", how)
        evaluate_to(
            tmp_path / f"first-{simulate}", target, drafters[:1], "demo:eval", dict(options, simulate=not simulate)
        )
        with monkeypatch.context() as patched:
            patched.setattr("sparsedraft.writers.conversation.Responder.write", None)  # the target is not asked again
            taking = dict(how, answers=tmp_path / f"first-{simulate}")
            found = evaluate_to(tmp_path / f"second-{simulate}", target, drafters, "demo:eval", taking)
        assert timeless(found["drafters"]) == timeless(expected["drafters"])
        assert raw(tmp_path / f"second-{simulate}") == raw(tmp_path / f"own-{simulate}")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_new_tokens": 15}, r"other questions \(changed: options.max_new_tokens\)"),
        ({"limit": 3}, r"changed: options.limit, prompts"),
        ({"temperature": 1.0}, r"changed: options.temperature"),
        ({"target": "noisy"}, r"changed: target"),
        ({"answers": "models"}, "no finished evaluation: name the --out of one"),
    ],
    ids=str,
)
def test_answers_to_other_questions_are_refused(models, tmp_path: Path, changed: dict, message: str) -> None:
    target, drafters = models
    options = dict(GREEDY, limit=4, simulate=True, answers=tmp_path / "first")
    evaluate_to(tmp_path / "first", target, drafters[:1], "demo:eval", dict(options, answers=None))
    if changed.pop("target", None):
        target = drafters[1][1]
    if changed.get("answers"):
        changed["answers"] = target
    with pytest.raises(UserError, match=message):
        evaluate_to(tmp_path / "second", target, drafters, "demo:eval", {**options, **changed})
    assert {file.name for file in tmp_path.iterdir()} <= {"first", ".first.lock", ".second.lock"}
