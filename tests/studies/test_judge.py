"""The study that judges drafters: the target answers once, and ratios are paired."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import judge
import stages
from packed_folders import build, save
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.native import extension as native
from sparsedraft.stages.evaluate.bootstrap import DRAWS
from stages import distill, evaluate_to
from stored import by_drafter

pytestmark = pytest.mark.skipif(not native.is_built(), reason="not built")
SMALL = ["--max-new-tokens", "12", "--k", "1,3", "--limit", "9", "--rows", "demo:eval"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A target and drafters near it: its checkpoint, packed in int8 and int4, and another one."""
    root = tmp_path_factory.mktemp("judged")
    target = save(build("llama", tied=True), root / "target")
    for weights in ("int8", "int4"):
        stages.pack(str(target), root / weights, weights=weights)
    save(build("llama", tied=True, seed=1), root / "other")
    return {name: str(root / name) for name in ("target", "int8", "int4", "other")}


def test_drafters_of_any_form_are_judged_on_the_answers_of_a_packed_target(models, tmp_path: Path, monkeypatch) -> None:
    named = [f"{name}={models[name]}" for name in ("int4", "other")]
    out = ["--out", str(tmp_path / "judged")]
    first = judge.main([models["int8"], *named, *SMALL, *out, "--baseline", "int4"])
    assert first["used"] == {
        "rows": "demo:eval", "sha256": None, "for": "choosing", "questions": 9, "answers": 10,
        "target_tokens": first["used"]["target_tokens"], "max_new_tokens": 12,
    }  # fmt: skip
    assert [row["name"] for row in first["rows"]] == ["lookup", "int4", "other"]
    monkeypatch.setattr("sparsedraft.writers.conversation.Responder.write", None)  # no question is answered again
    both = judge.main([models["int8"], f"same={models['int8']}", f"plain={models['target']}", *SMALL, *out])
    rows = {row["name"]: row for row in both["rows"]}
    assert {*rows} == {"lookup", "int4", "other", "same", "plain"} and both["baseline"] == "same"
    assert rows["same"]["alpha"] == 1.0 and rows["same"]["k"]["3"]["ratio_interval"] == [1.0, 1.0]
    assert rows["int4"]["k"]["3"]["mal"] == first["rows"][1]["k"]["3"]["mal"]
    assert rows["other"]["k"]["3"]["ratio"] < rows["int4"]["k"]["3"]["ratio"] < rows["plain"]["k"]["3"]["ratio"] <= 1
    again = judge.main([models["int8"], *named, *SMALL, *out, "--baseline", "int4"])
    assert [row for row in again["rows"] if row["name"] in ("lookup", "int4", "other")] == first["rows"]


def test_a_drafter_has_the_figures_of_the_real_loop(models, tmp_path: Path) -> None:
    judged = judge.main([models["int8"], f"int4={models['int4']}", *SMALL, "--out", str(tmp_path / "judged")])
    options = {"k": [1, 3], "max_new_tokens": 12, "limit": 9, "spread": True}
    loop = evaluate_to(None, models["int8"], [("int4", models["int4"])], "demo:eval", options)
    (drafter,) = loop["drafters"]
    assert {k: at["mal"] for k, at in judged["rows"][1]["k"].items()} == {
        k: at["mal"] for k, at in drafter["k"].items()
    }


def test_ratios_draw_the_same_questions_for_both(models, tmp_path: Path) -> None:
    """The interval of a ratio against a paired bootstrap by hand, widened as for few questions."""
    named = [f"{name}={models[name]}" for name in ("int4", "other")]
    judged = judge.main([models["int8"], *named, *SMALL, "--out", str(tmp_path / "j"), "--baseline", "int4"])
    counts = {}
    for name in ("int4", "other"):
        of = sorted(by_drafter(tmp_path / "j" / name)[name], key=lambda row: row["prompt"])
        counts[name] = np.array([[(h := r["histograms"]["3"])["tokens"], sum(h["counts"])] for r in of], float)
    rng = np.random.default_rng(5)
    draws = rng.integers(0, 9, (20 * DRAWS, 9))
    mal = {name: (sums := of[draws].sum(1))[:, 0] / sums[:, 1] for name, of in counts.items()}
    at = judged["rows"][2]["k"]["3"]
    low, high = np.quantile(np.log(mal["other"] / mal["int4"]), [0.025, 0.975])
    found = np.log(at["ratio_interval"])
    widened = 2.306 / 1.96 * np.sqrt(9 / 8)  # Student's t with 8 degrees of freedom, and n / (n - 1)
    assert found[1] - found[0] == pytest.approx(widened * (high - low), rel=0.15)


@pytest.mark.slow
def test_validation_rows_are_those_that_fine_tuning_holds_out(models, tmp_path: Path) -> None:
    from sparsedraft.models import checkpoint
    from sparsedraft.stages.finetune.stage import split
    from sparsedraft.text import dataset

    distill(models["target"], "demo:train", tmp_path / "data", limit=12, max_new_tokens=6)
    rows = ["--rows", str(tmp_path / "data"), "--validation-prompts", "5"]
    judged = judge.main(
        [models["target"], f"int4={models['int4']}", *SMALL[:4], *rows, "--out", str(tmp_path / "judged")]
    )
    samples = [*dataset.samples(tmp_path / "data", checkpoint.load_tokenizer(models["target"]), False)]
    _, validation = split(samples, 5)
    found = by_drafter(tmp_path / "judged/int4")["int4"]
    assert {row["prompt"] for row in found} == {sample.prompt_id for sample in validation}
    assert judged["used"]["questions"] == 5 and judged["used"]["for"] == "choosing"


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "--validation-prompts 0 leaves no question: give as many as `finetune` held out."),
        (-1, "--validation-prompts -1 leaves no question: give as many as `finetune` held out."),
        (3, "--validation-prompts 3 is more than the 2 prompts of {data}: give as many as `finetune` held out."),
    ],
)
def test_as_many_prompts_as_there_are_can_validate(count: int, message: str, tmp_path: Path, monkeypatch) -> None:
    rows = [{"prompt_id": name, "prompt_ids": [i], "sample": 0, "turn": 0} for i, name in enumerate("ab")]
    rows = [{**row, "category": "qa", "messages": []} for row in rows]
    monkeypatch.setattr("curve.dataset.read", lambda _: rows)
    file = judge.validation_prompts(tmp_path, 2, tmp_path)
    assert len(file.read_text().splitlines()) == 2
    with pytest.raises(UserError, match=f"^{re.escape(message.format(data=tmp_path))}$"):
        judge.validation_prompts(tmp_path, count, tmp_path)


def test_questions_of_spec_bench_confirm(models, tmp_path: Path) -> None:
    write_json(
        tmp_path / "q.json", [{"question_id": i, "category": "qa", "turns": ["Who?" * (i + 1)]} for i in range(3)]
    )
    arguments = [*SMALL[:4], "--rows", str(tmp_path / "q.json"), "--out", str(tmp_path / "judged")]
    judged = judge.main([models["target"], f"int4={models['int4']}", *arguments])
    assert judged["used"]["for"] == "confirming" and len(judged["used"]["sha256"]) == 64
    assert {*judged["rows"][1]["mal_by_task"]} == {"qa"}
    json.dumps(judged)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--baseline", "none"], "--baseline none is no drafter: choose one of lookup, int4."),
        (["--limit", "8"], "changed: options.limit, prompts"),
        (["--k", "none"], "--k none is not a list"),
    ],
)
def test_a_mistake_is_one_sentence(models, tmp_path: Path, capsys, given: list[str], message: str) -> None:
    call = [models["target"], f"int4={models['int4']}", *SMALL, "--out", str(tmp_path / "judged")]
    judge.main(call)
    with pytest.raises(SystemExit) as ended:
        judge.main([*call, *given])
    assert ended.value.code == 2 and message in capsys.readouterr().err.replace("\n", " ")
