"""Sizes: every whole number on the command line and in a recipe has a bound, the same in both."""

import json
import sys
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel

from sparsedraft import cli
from sparsedraft.base import bounds
from sparsedraft.base.errors import UserError
from sparsedraft.recipe import reading as recipes
from sparsedraft.stages.inspect.options import InspectOptions
from sparsedraft.stages.prune.options import DropLayersSettings, PruneSettings
from stages import distill

SECTIONS = {
    "distill": recipes.Distill, "prune": PruneSettings, "drop-layers": DropLayersSettings,
    "finetune": recipes.Finetune, "eval": recipes.Eval,
}  # fmt: skip


COMMANDS = {info.name: info.callback for info in cli.app.registered_commands}


def options(command: str) -> dict[str, tuple[int | None, int | None]]:
    """(least, most) of the options that are whole numbers."""
    hints = get_type_hints(COMMANDS[command], include_extras=True)
    found = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Annotated}
    return {name: (o.min, o.max) for name, (kind, o) in found.items() if kind in (int, int | None)}


def limits(section: type[BaseModel], name: str) -> tuple[int, int]:
    """(least, most) of a field, as its JSON schema says."""
    field = section.model_json_schema()["properties"][name]
    found = next((kind for kind in [field, *field.get("anyOf", [])] if kind.get("type") == "integer"), {})
    return found.get("minimum"), found.get("maximum")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_whole_number_has_both_bounds(command: str) -> None:
    for name, limits in options(command).items():
        assert None not in limits, f"{command} {name} has no bounds"


@pytest.mark.parametrize("section", [*SECTIONS.values(), recipes.Speed, recipes.Recipe])
def test_so_has_every_one_of_a_recipe(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        if field.annotation in (int, int | None):
            assert None not in limits(section, name), f"{section.__name__}.{name} has no bounds"


@pytest.mark.parametrize("command", SECTIONS)
def test_both_have_the_same(command: str) -> None:
    section, found = SECTIONS[command], options(command)
    shared = found.keys() & section.model_fields.keys()
    assert len(shared) >= 1
    for name in shared:
        assert limits(section, name) == found[name], f"{command} {name}"
    assert limits(recipes.Recipe, "seed") == found["seed"] == (0, bounds.SEED)


@pytest.mark.parametrize(
    "words",
    [
        "distill T demo:train --out O --samples 1000000000",
        "distill T demo:train --out O --top-k-logprobs 100000",
        "distill T --mode magpie --out O --limit 1000000000000",
        "finetune D data --out O --rows-per-step 1000000000",
        "prune T --calibration demo:train --out O --seed 9223372036854775808",
        "eval T D --prompts demo:eval --k 100000",
        "generate T --prompt hi --k 100000",
        "generate T --prompt hi --min-p 2",
        "eval T D --tasks t --seed 4294967296",
    ],
)
def test_what_cannot_finish_is_refused_at_once(words: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["sparsedraft", *words.split()])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert left.value.code == 2 and words.split()[-2] in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=9223372036854775808", "seed"),
        ("seed=-1", "seed"),
        ("distill.samples=1000000000", r"distill\.samples"),
        ("finetune.rows_per_step=1000000000", r"finetune\.rows_per_step"),
        ("eval.k=[100000]", r"eval\.k"),
        ("eval.temperature=.inf", r"eval\.temperature"),
        ("finetune.learning_rate=.nan", r"finetune\.learning_rate"),
        ("distill.rules.min_answer_tokens=-1", r"distill\.rules\.min_answer_tokens = -1"),
        ("distill.rules.max_prompt_tokens=10000000000", r"distill\.rules\.max_prompt_tokens = 10000000000"),
    ],
)
def test_so_it_is_in_a_recipe(override: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("target: t\ndrafters: [{name: a}]\n")
    with pytest.raises(UserError, match=f"{message}.* is not possible"):
        recipes.read(tmp_path / "recipe.yaml", [override])


def test_what_one_folder_and_one_vocabulary_hold(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--limit 1000001 is more than --mode magpie writes into one folder"):
        distill(str(tiny_checkpoint), None, tmp_path / "out", mode="magpie", limit=1_000_001)
    with pytest.raises(UserError, match="--top-k-logprobs 321 is more than the vocabulary of 320"):
        distill(str(tiny_checkpoint), "demo:train", tmp_path / "out", limit=1, top_k_logprobs=321)
    assert distill(str(tiny_checkpoint), "demo:train", tmp_path / "out", limit=1, top_k_logprobs=320, max_new_tokens=2)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["topk"] == 320


def test_options_take_paths_where_they_take_names() -> None:
    assert InspectOptions(checkpoint=Path("model")) == InspectOptions(checkpoint="model")
