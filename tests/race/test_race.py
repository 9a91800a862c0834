"""A race: all write the target's own text, which says who wrote each part, and time passes as it did."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import sparsedraft
from sparsedraft import cli
from sparsedraft.base.errors import UserError
from sparsedraft.race import view
from sparsedraft.race.lane import Event, Lane
from sparsedraft.race.options import RaceOptions
from sparsedraft.race.stage import ALONE, race
from sparsedraft.stages.generate.texts import TextPiece

PROMPT = "the quick brown fox"


def test_all_write_the_targets_own_text(tiny_checkpoint: Path) -> None:
    model = str(tiny_checkpoint)
    result = race(RaceOptions(target=model, drafters=(model, "lookup", f"{model}+lookup"), prompt=PROMPT,
                              max_new_tokens=24, k=3))  # fmt: skip
    lanes = {row["name"]: row for row in result["lanes"]}
    assert [*lanes] == [ALONE, f"with {model}", "with lookup", f"with {model}+lookup"]
    text = sparsedraft.generate(model, PROMPT, max_new_tokens=24)
    for row in lanes.values():
        assert row["equal"] and row["text"] == text.text and row["tokens"] == len(text.token_ids)
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
    assert lanes[ALONE]["mal"] == lanes[ALONE]["speedup"] == 1
    assert lanes[f"with {model}"]["mal"] > 3, "its own drafts are all accepted"


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_piece_says_what_drafts_wrote(tiny_checkpoint: Path, k: int) -> None:
    """Plain decoding has no such text; a target that drafts for itself has but the last token of each step without."""
    plain = [*sparsedraft.generate(tiny_checkpoint, PROMPT, max_new_tokens=20, stream=True)]
    assert all(piece.from_drafts == "" for piece in plain)
    drafted = [
        *sparsedraft.generate(tiny_checkpoint, PROMPT, drafter=tiny_checkpoint, k=k, max_new_tokens=20, stream=True)
    ]
    assert "".join(p.text for p in drafted) == "".join(p.text for p in plain)
    assert all(piece.text.startswith(piece.from_drafts) for piece in drafted)
    # the text of a step's drafts is that of as many plain steps
    at = 0
    for piece in drafted[:-1]:
        own = "".join(p.text for p in plain[at : at + piece.accepted])
        assert piece.from_drafts == own
        at += piece.accepted + 1


def lane(name: str, *steps: tuple[float, str, str]) -> Lane:
    events = [Event(at, 2, TextPiece(0, drafts + own, 3, 1, drafts)) for at, drafts, own in steps]
    return Lane(name, events)


def shown(lanes: list[Lane], seconds: float) -> str:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    console.print(view.frame(lanes, seconds, 80, 8))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_frame_shows_what_was_written_by_then_with_drafts_in_colour() -> None:
    lanes = [lane("one", (0.5, "red ", "green "), (1.0, "blue ", "end")), lane("two", (0.9, "", "slow"))]
    early, late = shown(lanes, 0.6), shown(lanes, 1.0)
    assert "\x1b[1;32mred " in early and "green" in early and "blue" not in early and "slow" not in early
    assert "\x1b[1;32mblue " in late and "slow" in late and "4 tokens, 2.00 a step" in late


def test_text_steers_no_terminal() -> None:
    assert "\x1b[2J" not in shown([lane("evil\x1b[2J", (0.1, "\x1b[2J", "x"))], 1.0)


def test_the_replay_lasts_as_long_as_the_slowest() -> None:
    now, naps = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        naps.append(seconds)
        now += seconds

    console = Console(file=io.StringIO(), width=80, height=20, force_terminal=True)
    view.replay([lane("a", (0.2, "x", "y")), lane("b", (1.0, "", "z"))], console, lambda: now, sleep)
    assert now == pytest.approx(1.0, abs=2 / view.FRAMES) and len(naps) == pytest.approx(view.FRAMES, abs=2)


def test_the_command_ends_with_its_json(tiny_checkpoint: Path) -> None:
    words = ["race", str(tiny_checkpoint), "lookup", "--prompt", PROMPT, "--max-new-tokens", "8"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout.splitlines()[-1])["lanes"]) == 2


@pytest.mark.parametrize(
    ("drafters", "sentence"),
    [
        ((), r"DRAFTERS name none: give at least one, such as lookup\."),
        (("lookup", "lookup"), r"DRAFTERS name lookup twice: leave one of them out\."),
    ],
)
def test_races_that_make_no_sense(drafters: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        RaceOptions(target="t", drafters=drafters, prompt="p")
