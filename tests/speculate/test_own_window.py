"""Where a pair takes the drafter's window from: what is asked for, else what its folder says, else the whole text."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sparsedraft.base.errors import UserError
from sparsedraft.base.places import read_provenance
from sparsedraft.models.config import drafting
from sparsedraft.native import extension as native
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.stages.generate.texts import load_pair
from stages import distill, evaluate_to, finetune, inspect, pack
from stages import generate as write
from tiny import build_llama, build_tokenizer

RUNTIMES = ["transformers", *(["native"] if native.is_built() else [])]
ASKED = [({}, Window(16, 2)), ({"drafter_window": 0}, None), ({"drafter_window": 24}, Window(24, 4)),
         ({"drafter_sinks": 0}, Window(16, 0)), ({"drafter_window": 8, "drafter_sinks": 1}, Window(8, 1))]  # fmt: skip


@pytest.fixture
def windowed(tmp_path: Path) -> Path:
    """A drafter's folder that says 16 tokens behind 2."""
    build_llama(seed=3).save_pretrained(tmp_path / "drafter")
    build_tokenizer().save_pretrained(tmp_path / "drafter")
    drafting.write(tmp_path / "drafter", drafting.Drafting(window=16, sinks=2))
    return tmp_path / "drafter"


@pytest.mark.parametrize(("asked", "used"), ASKED, ids=str)
def test_what_generate_reads(windowed: Path, tiny_checkpoint: Path, asked: dict[str, Any], used: Window | None) -> None:
    for drafter, expected in ((windowed, used), (tiny_checkpoint, None if "drafter_window" not in asked else used)):
        options = GenerateOptions(target=str(tiny_checkpoint), prompt=("a",), drafter=str(drafter), **asked)
        assert load_pair(options).window == expected, drafter


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_text_is_the_targets_own(windowed: Path, tiny_checkpoint: Path, runtime: str) -> None:
    prompt, how = ["the quick brown fox " * 8], {"max_new_tokens": 24, "raw": True, "runtime": runtime}
    alone = write(str(tiny_checkpoint), prompt, **how)["text"]
    assert write(str(tiny_checkpoint), prompt, drafter=str(windowed), **how)["text"] == alone


def test_eval_says_what_was_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """By default the folder's own; asked for by its numbers, the same; and 0 is another evaluation."""
    windowed = tmp_path / "windowed"
    shutil.copytree(tiny_checkpoint, windowed)  # the target itself: with a window it sees less
    drafting.write(windowed, drafting.Drafting(window=16, sinks=2))
    how = {"k": [1, 4], "max_new_tokens": 40, "limit": 4, "batch_size": 4, "simulate": True}
    named = [("own", str(windowed)), ("plain", str(tiny_checkpoint))]
    found = {
        name: evaluate_to(tmp_path / name, str(tiny_checkpoint), named, "demo:eval", how | asked)
        for name, asked in {
            "own": {}, "asked": {"drafter_window": 16, "drafter_sinks": 2}, "whole": {"drafter_window": 0}
        }.items()
    }  # fmt: skip
    own, plain = found["own"]["drafters"]
    assert own.pop("window") == [16, 2] and "window" not in plain and "drafter_window" not in found["own"]
    assert own == found["asked"]["drafters"][0] and plain == found["whole"]["drafters"][1]
    assert own["alpha"] < 1 == found["whole"]["drafters"][0]["alpha"], "it matters"
    assert found["asked"]["drafter_window"] == 16 and "window" not in found["asked"]["drafters"][0]
    inputs = [read_provenance(tmp_path / name)["inputs"]["options"] for name in found]  # type: ignore[index]
    assert [options.get("drafter_window") for options in inputs] == [None, 16, 0]
    with pytest.raises(UserError, match="changed: options"):
        evaluate_to(tmp_path / "own", str(tiny_checkpoint), named, "demo:eval", how | {"drafter_window": 0})
    old = [("plain", str(tiny_checkpoint))]
    first = evaluate_to(tmp_path / "old", str(tiny_checkpoint), old, "demo:eval", how)
    again = evaluate_to(tmp_path / "old", str(tiny_checkpoint), old, "demo:eval", how | {"drafter_window": 0})
    assert first == again, "a folder that says nothing: the same evaluation, which is done"


def test_pack_notes_it_and_takes_it_along(windowed: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    for folder, asked, noted in (
        (windowed, {}, [16, 2]),
        (windowed, {"drafter_window": 32}, [32, 4]),
        (windowed, {"drafter_window": 0}, [None, None]),
        (plain, {"drafter_window": 20, "drafter_sinks": 0}, [20, 0]),
        (plain, {}, [None, None]),
    ):
        if not plain.exists():
            build_llama(seed=3).save_pretrained(plain)
            build_tokenizer().save_pretrained(plain)
        out = tmp_path / f"{folder.name}-{noted[0]}-{len(asked)}"
        result, shown = pack(str(folder), out, **asked), inspect(str(out))
        assert [shown["drafter_window"], shown["drafter_sinks"]] == noted and shown["drafter_temperature"] is None
        assert result.get("drafting") == (None if noted[0] is None else {"window": noted[0], "sinks": noted[1]})
        assert (out / drafting.DRAFTING).exists() == (noted[0] is not None)
    with pytest.raises(UserError, match="changed: drafter_window"):
        pack(str(windowed), tmp_path / "drafter-32-1", drafter_window=33)


def test_both_that_are_known_stay_together(windowed: Path, tmp_path: Path) -> None:
    drafting.write(windowed, drafting.Drafting(temperature=0.7, window=16, sinks=2))
    pack(str(windowed), tmp_path / "other", drafter_window=8)
    assert drafting.read(tmp_path / "other") == drafting.Drafting(temperature=0.7, window=8, sinks=4)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"drafter_window": 4}, "--drafter-window 4 is no more than the 4 tokens of --drafter-sinks"),
        ({"drafter_window": 1, "drafter_sinks": 0}, "--drafter-window 1 is no more than"),
        ({"drafter_sinks": 3}, "--drafter-sinks 3 are of a window: give --drafter-window, too"),
    ],
)
def test_what_pack_refuses(windowed: Path, tmp_path: Path, asked: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack(str(windowed), tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_finetune_notes_the_window_that_it_trained_with(windowed: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from sparsedraft.stages.finetune.options import Settings

    data, settings = tmp_path / "data", Settings(sequence_length=128, tokens=200)
    distill(str(tiny_checkpoint), "demo:train", data, max_new_tokens=24, limit=12, batch_size=6)
    for asked, noted in (({"drafter_window": 24}, (24, 4)), ({}, None)):
        out = tmp_path / f"tuned-{len(asked)}"
        finetune(str(windowed), str(data), out, settings=settings, validation_prompts=4, **asked)
        assert drafting.of(out).reads == noted


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"window": 4, "sinks": 4}, "window 4 is no more than its 4 sinks"), ({"window": 3}, "more than its 4 sinks"),
        ({"window": -5}, "window: "), ({"window": 1, "sinks": 0}, "window: "), ({"window": 8.5}, "window: "),
        ({"window": "16"}, "window: "), ({"window": 1 << 40}, "window: "), ({"window": 8, "sinks": -1}, "sinks: "),
        ({"sinks": 2}, "neither temperature nor window"),
    ],
)  # fmt: skip
def test_a_damaged_record_names_the_file_and_the_field(windowed: Path, content: dict[str, Any], what: str) -> None:
    (windowed / drafting.DRAFTING).write_text(json.dumps(content))
    for use in (drafting.read, lambda folder: inspect(str(folder))):
        with pytest.raises(UserError, match=rf"drafting\.json cannot be read \(.*{what}.*\): make it again, or delete"):
            use(windowed)
