"""The report: every figure of the result, in one file that needs nothing else."""

import copy
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from evaluations import RESULT, drafter
from sparsedraft.base.errors import UserError
from sparsedraft.stages.report.load import load
from sparsedraft.stages.report.plots import label_heights
from sparsedraft.stages.report.tables import headline, main_rows
from stages import report

CUT = "layer-pruned+distilled"
EXAMPLE = {
    "drafter": "sd2-50", "k": 5, "prompt_id": "q", "prompt": "Is 1 < 2 & 3?",
    "steps": [{"drafted": [" yes", "<b>bad</b>"], "accepted": 1, "target": "\n"},
              {"drafted": [], "accepted": 0, "target": None}],
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    files = {
        "eval/result.json": json.dumps(RESULT),
        "eval/example.json": json.dumps(EXAMPLE),
        "distilled/result.json": json.dumps(
            {"rows": 7, "target_tokens": 4321, "prompt_tokens": 99, "finish_reasons": {"eos": 6, "length": 1}}
        ),
        "drafters/sd2-50/finetuned/log.jsonl": '{"step": 0, "tokens": 0, "val_loss": 2, "val_alpha": 0.5}\n'
        '{"step": 1, "tokens": 9, "loss": 2.0, "lr": 1e-4}\n'
        '{"step": 1, "tokens": 9, "val_loss": 1, "val_alpha": 0.6}\n',
        "eval/provenance.json": json.dumps(
            {"command": "eval", "seed": 0, "commit": "abc123", "seconds": 1.5, "finished": "now"}
        ),
        "recipe.yaml": "target: some/target\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_html_holds_the_figures_and_needs_nothing_else(run: Path) -> None:
    html = Path(report(run)["report"]).read_text()
    for row in main_rows(RESULT)[1]:
        for cell in row:
            assert cell in html
    assert re.findall(r"""(?:src|href)=["'](?!#)""", html) == [] and "@import" not in html and "url(http" not in html
    assert "<script" not in html and html.count("<svg") == 4
    assert "4,321 tokens" in html and "abc123" in html
    assert "<b>bad" not in html and "&lt;b&gt;bad&lt;/b&gt;" in html and "a&lt;b" in html
    assert '<span class="r">&lt;b&gt;bad' in html and '<span class="a"> yes' in html and '<span class="t">⏎' in html


def test_markdown_agrees_and_its_pictures_exist(run: Path) -> None:
    text = Path(report(run)["markdown"]).read_text()
    for row in main_rows(RESULT)[1]:
        assert "| " + " | ".join(row) + " |" in text
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(pictures) == 4
    for picture in pictures:
        assert (run / "report" / picture).read_bytes()[:4] == b"\x89PNG"


def test_a_card_for_each_drafter(run: Path) -> None:
    folder = Path(report(run)["report"]).parent / "cards"
    assert sorted(file.name for file in folder.iterdir()) == ["layer-pruned+distilled.md", "sd2-50.md"]
    front, text = (folder / "sd2-50.md").read_text().split("---\n")[1:3]
    assert OmegaConf.create(front).base_model == "some/target" and "speculative-decoding" in front
    assert "50% of the weights of its decoder linears are 0 (2:4)" in text and "4,321 tokens" in text
    assert "| greedy | 0.710 | 2.70 | 2.90 | 3.20 |" in text and "| a<b | 0.710 | 2.40 |" in text
    assert "fine-tuned" not in text, "no provenance says that it was"
    codes = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(codes) == 1 and compile(codes[0], "card", "exec")
    config = json.loads(re.search(r"--speculative-config '(.*)'", text)[1])
    assert config == {"model": "runs/x/drafters/sd2-50/finetuned", "method": "draft_model", "num_speculative_tokens": 5}
    assert "target: some/target" in text


def test_a_card_says_the_drafters_own_temperature(run: Path) -> None:
    """From the training, or from packing, which has measured what is packed."""
    card = run / "report/cards/sd2-50.md"
    trained, packed = run / "drafters/sd2-50/finetuned/result.json", run / "packed/sd2-50/result.json"
    trained.write_text(json.dumps({"drafting": {"temperature": 0.85, "alpha": [0.31, 0.3342], "places": 9}}))
    report(run)
    assert "the target's times 0.85 (α on its validation text 0.334, at 1 0.310)" in card.read_text()
    trained.write_text(json.dumps({"drafting": None}))
    report(run, overwrite=True)
    assert "own temperature" not in card.read_text()
    packed.parent.mkdir(parents=True)
    packed.write_text(json.dumps({"drafting": {"temperature": 0.9}, "bytes": 1, "weights": "int8"}))
    report(run, overwrite=True)
    assert "the target's times 0.9." in card.read_text()


def test_what_a_card_says_of_how_it_was_made(run: Path) -> None:
    """Its own stages and those of what it started from; not those of a name that begins alike. No card for look-up."""
    made = {"seed": 0, "commit": "abc", "seconds": 1.0, "finished": "now"}
    for where, command, start in (
        ("sd2-50/finetuned", "finetune", "drafters/sparse-50/pruned"), ("sparse-50/pruned", "prune", "dense"),
        ("sd2/layer-dropped", "drop-layers", "dense"),
    ):  # fmt: skip
        folder = run / "drafters" / where
        folder.mkdir(parents=True, exist_ok=True)
        inputs = {"checkpoint": {"path": f"runs/x/{start}"}, "data": {"path": "runs/x/drafters/sd2/layer-dropped"}}
        (folder / "provenance.json").write_text(json.dumps({**made, "command": command, "inputs": inputs}))
    result = copy.deepcopy(RESULT)
    cut = {**drafter("sd2", 1.1, 0.1, 0.5), "path": "runs/x/drafters/sd2/layer-dropped", "pattern": "dense"}
    lookup = {key: value for key, value in drafter("lookup", 1.3, 0.2, 0.5).items() if key != "sparsity"}
    result["drafters"] += [cut, lookup]
    (run / "eval/result.json").write_text(json.dumps(result))
    (run / "recipe.yaml").write_text("not: [yaml")
    folder = Path(report(run)["report"]).parent / "cards"
    assert sorted(f.stem for f in folder.iterdir()) == ["layer-pruned+distilled", "sd2", "sd2-50"]
    tuned, cut_card = ((folder / f"{name}.md").read_text() for name in ("sd2-50", "sd2"))
    assert tuned.index("| drafters/sparse-50/pruned | prune |") < tuned.index(
        "| drafters/sd2-50/finetuned | finetune |"
    )
    assert "It was fine-tuned on what that target wrote" in tuned and "drafters/sd2/" not in tuned
    assert "fine-tuned" not in cut_card and "some of the decoder's layers are left out" in cut_card
    assert "drafters/sd2-50" not in cut_card.split("## How it was made")[1].split("The recipe")[0]


def test_same_run_same_bytes(run: Path) -> None:
    def files() -> dict[str, bytes]:
        found = (p for p in (run / "report").rglob("*") if p.is_file() and p.name != "provenance.json")
        return {str(p): p.read_bytes() for p in found}

    report(run)
    first = files()
    report(run, overwrite=True)
    assert first == files() and len(first) == 13


def test_optional_parts_may_lack(run: Path) -> None:
    for name in ("eval/example.json", "distilled/result.json", "drafters/sd2-50/finetuned/log.jsonl", "recipe.yaml"):
        (run / name).unlink()
    html = Path(report(run)["report"]).read_text()
    assert "worked example" not in html and html.count("<svg") == 2


def test_what_the_recipe_does_not_ask_for_is_not_shown(run: Path) -> None:
    """An earlier recipe of the same folder may have made it, of other drafters."""
    (run / "packed-eval").mkdir()
    (run / "packed-eval/result.json").write_text(json.dumps({**RESULT, "temperature": 0}))
    for asked, shown in (
        ("speed: null", False),
        ("speed: {acceptance: false}", False),
        ("speed: {acceptance: true}", True),
    ):
        (run / "recipe.yaml").write_text(f"target: some/target\n{asked}\n")
        assert bool(load(run).packed_eval) == shown and load(run).speed is None
    (run / "recipe.yaml").unlink()
    assert load(run).packed_eval


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks eval/result\.json"):
        report(tmp_path)


def test_headline_is_computed() -> None:
    assert headline(RESULT, CUT) == (
        "sd2-50 brings 2.90 tokens a step at K = 5, 1.71 times as many as layer-pruned+distilled of no fewer MACs "
        "(1.70)."
    )
    larger = copy.deepcopy(RESULT)
    larger["drafters"].append({**copy.deepcopy(larger["drafters"][1]), "name": "dense", "macs_per_token": 10**9})
    for found in larger["drafters"][-1]["k"].values():
        found["mal"] = 4.0
    assert headline(larger, CUT) == headline(RESULT, CUT), "a drafter of more MACs is not compared as if it had as many"
    alone = {**RESULT, "drafters": [{**RESULT["drafters"][1], "name": "lookup", "macs_per_token": 0}]}
    assert headline(alone, None) == "lookup brings 2.90 tokens a step at K = 5."
    one = copy.deepcopy(RESULT)
    del one["drafters"][0]
    assert headline(one, None) == "sd2-50 brings 2.90 tokens a step at K = 5."


def test_labels_keep_their_distance() -> None:
    heights = label_heights([2.0, 1.0, 1.01, 2.02], gap=0.1)
    ordered = sorted(heights)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(ordered))
    assert heights[1] == 1.0 and heights[0] == 2.0


@pytest.mark.parametrize("damaged", ["{", "[]", "[" * 200_000], ids=["torn", "array", "deep"])
def test_a_damaged_side_file_of_a_run_is_one_sentence(damaged: str, run: Path) -> None:
    for name in ("eval/result.json", "eval/example.json", "distilled/result.json", "eval/provenance.json"):
        whole = (run / name).read_text()
        (run / name).write_text(damaged)
        with pytest.raises(UserError, match=rf"{name} cannot be read"):
            report(run)
        (run / name).write_text(whole)


@pytest.mark.parametrize(
    ("command", "inputs", "said", "weights"),
    [
        ("prune", {"options": {"quantize": "int4"}}, "The linears hold values of int4, whose scales", "int4"),
        ("finetune", {"settings": {"quantize": "int4"}}, "trained with its linears rounded to int4", "int4"),
        ("finetune", {"settings": {"quantize": "none"}}, None, "int8"),
    ],
)
def test_a_card_says_how_its_drafter_is_rounded(run: Path, command: str, inputs: dict, said: str, weights: str) -> None:
    made = {"seed": 0, "commit": "abc", "seconds": 1.0, "finished": "now", "command": command, "inputs": inputs}
    (run / "drafters/sd2-50/finetuned/provenance.json").write_text(json.dumps(made))
    text = (Path(report(run)["report"]).parent / "cards/sd2-50.md").read_text()
    assert said is None or f" {said}" in text
    assert ("rounded" in text) == (said is not None and command == "finetune")
    flag = "" if weights == "int8" else " --weights int4"
    assert re.search(f"pack runs/x/drafters/sd2-50/finetuned --out drafter-{weights}{flag}\nsparsedraft generate", text)
    assert f"--drafter drafter-{weights} --prompt" in text
