"""`eval --tasks`: a local multiple-choice task through lm-eval gives the accuracy that the log-likelihoods say."""

import json
from pathlib import Path

import pytest
import torch

from inside import call
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from stages import run_tasks

ROWS = [
    {"question": f"{a} apples and {b} apples are", "choices": [f" {a + b}", f" {a + b + 1}", " none"], "answer": 0}
    for a in range(1, 5)
    for b in range(1, 4)
]
TASK = """
task: apples
dataset_path: json
dataset_kwargs:
  data_files:
    test: apples.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
target_delimiter: ""
doc_to_target: answer
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    (folder / "apples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "apples.yaml").write_text(TASK)
    return folder / "apples.yaml"


def accuracy(folder: Path) -> float:
    """By hand: the choice with the greatest log-likelihood after the question."""
    model, tokenizer = checkpoint.load(folder), checkpoint.load_tokenizer(folder)
    right = 0
    for row in ROWS:
        scores = []
        for choice in row["choices"]:
            question, whole = (tokenizer(text)["input_ids"] for text in (row["question"], row["question"] + choice))
            with torch.no_grad():
                logprobs = model(torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
            n = len(whole) - len(question)
            scores.append(float(logprobs.gather(1, torch.tensor(whole[1:])[:, None])[-n:].sum()))
        right += scores.index(max(scores)) == row["answer"]
    return right / len(ROWS)


@pytest.mark.slow
def test_a_local_task_gives_the_accuracy_of_the_likelihoods(task: Path, tiny_checkpoint: Path, talker: Path) -> None:
    pytest.importorskip("lm_eval")
    found = run_tasks(str(tiny_checkpoint), [("b", str(talker))], [str(task)])
    for entry, folder in zip(found["models"], (tiny_checkpoint, talker), strict=True):
        assert entry["tasks"]["apples"]["acc"] == pytest.approx(accuracy(folder))


@pytest.mark.slow
def test_command(
    task: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("lm_eval")
    out = tmp_path / "out"
    words = ("eval", tiny_checkpoint, tiny_checkpoint, "--tasks", f" {task} ,", "--limit", 4, "--out", out)
    assert call(monkeypatch, *words) == 0
    said = capsys.readouterr().out
    result = json.loads(said.splitlines()[-1])
    assert [m["name"] for m in result["models"]] == ["target", tiny_checkpoint.name]
    assert 0 <= result["models"][0]["tasks"]["apples"]["acc"] <= 1
    assert json.loads((out / "result.json").read_text())["models"] == result["models"]


@pytest.mark.slow
def test_refusals(task: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    target, models = str(tiny_checkpoint), [("a", str(tiny_checkpoint))]

    def refused(message: str, text: str) -> None:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            run_tasks(target, models, [str(tmp_path / "bad.yaml")])

    refused("cannot be read as plain YAML", TASK + "\nprocess_docs: !function evil.run\n")
    refused("has no field 'task'", "dataset_path: json\n")
    refused("dataset_path 'owner/name'", TASK.replace("dataset_path: json", "dataset_path: owner/name"))
    refused("no dataset_kwargs.data_files", "task: a\ndataset_path: json\n")
    for named, message in (
        ([*models, ("a", "elsewhere")], "two models are called 'a': name them, as in first=elsewhere"),
        ([*models, ("l", "lookup")], "'lookup' is no model"),
        ([*models, ("both", f"{models[0][1]}+lookup")], r"\+lookup' is no model"),
    ):
        with pytest.raises(UserError, match=message):
            run_tasks(target, named, [str(task)])
    with pytest.raises(UserError, match="names no task"):
        run_tasks(target, models, [])
    with pytest.raises(UserError, match="is no file"):
        run_tasks(target, models, [str(tmp_path / "none.yaml")])
    with pytest.raises(UserError, match="no_such_task"):
        run_tasks(target, models, ["no_such_task"])
