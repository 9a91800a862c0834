"""Names, ids and paths are shown as they are: no markup, no emoji, no formula, nothing that steers a terminal."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.table import Table

from evaluations import RESULT, drafter
from inside import call
from sparsedraft.base.console import complain, console, track, visible
from stages import report

NAMES = (
    "[/b]x",
    "[red]",
    "[/]",
    ":smile:",
    r"a\[b",
    "[link]y",
    "$\\frac{$",
    "_hidden",
    "\x1b[31mred",
    "a\u202eb",
)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_printed_is_plain(name: str, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(console, "_file", said)
    monkeypatch.setattr(console, "_force_terminal", terminal)
    monkeypatch.setattr(console, "_color_system", None)
    monkeypatch.setattr(console, "_width", 200)
    table = Table(title=f"title {name}")
    table.add_column(f"column {name}")
    table.add_row(f"cell {name}")
    console.print(f"line {name}", style="dim")
    console.print(table)
    console.rule(f"rule {name}")
    complain(f"error {name}")
    with track(f"task {name}", 3, "units") as tracker:
        tracker.note(f"note {name}")
        tracker.advance()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.getvalue())  # what moves a progress bar is rich's own
    kinds = ("line", "title", "column", "cell", "rule", "error", "task", "note")
    assert not [kind for kind in kinds if f"{kind} {visible(name)}" not in shown], shown
    assert "\x1b" not in shown and "\u202e" not in shown


def test_letters_of_every_script_stay_and_controls_show() -> None:
    assert visible("Grüße, 你好, שלום, e\u0301, 👩\u200d💻\tx\n") == "Grüße, 你好, שלום, e\u0301, 👩\u200d💻\tx\n"
    assert visible("\x1b]0;x\x07\r\x9b\udcff\u202e") == r"\x1b]0;x\x07\r\x9b\udcff\u202e"


@pytest.mark.parametrize("name", NAMES)
def test_commands_take_names_as_they_are(
    name: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, out, prompts = (tmp_path / f"{kind} {name.replace('/', '|')}" for kind in ("model", "out", "prompts"))
    shutil.copytree(tiny_checkpoint, model)
    prompt = {"id": name, "category": name, "prompt": "the quick brown fox"}
    prompts.with_suffix(".jsonl").write_text(json.dumps(prompt) + "\n")
    words = ("eval", model, f"{name}={model}", "--prompts", prompts.with_suffix(".jsonl"), "--k", 1)
    for _ in range(2):  # made, and already done
        assert call(monkeypatch, *words, "--max-new-tokens", 2, "--out", out) == 0
    said = capsys.readouterr()
    result = json.loads(said.out.splitlines()[-1])
    assert result["drafters"][0]["name"] == name and [*result["drafters"][0]["by_category"]] == [name]
    assert visible(name) in said.err and json.loads((out / "rows.jsonl").read_text())["category"] == name
    assert call(monkeypatch, "inspect", model) == 0
    for wrong in (
        ("inspect", name),
        ("pack", model, "--out", out, "--weights", name),
        ("eval", name, name, "--k", name),
    ):
        assert call(monkeypatch, *wrong) == 2
    assert "\x1b[31m" not in capsys.readouterr().err


def test_the_report_shows_names_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    result = {**RESULT, "drafters": [drafter(name, 1.2 + i / 10, 0.5, 0.5) for i, name in enumerate(NAMES)]}
    (tmp_path / "eval" / "result.json").write_text(json.dumps(result))
    report(tmp_path)
    for plot in ("mal_vs_macs", "by_position"):
        drawn = (tmp_path / "report" / f"{plot}.svg").read_text(encoding="utf-8")
        for name in NAMES:
            assert visible(name) in drawn and "\x1b" not in drawn
    markdown = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "\x1b" not in markdown and r"\x1b[31mred" in markdown
