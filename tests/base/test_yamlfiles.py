"""Recipes that no person would write: one sentence, at once, whatever the YAML holds."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from inside import call
from sparsedraft.base.errors import UserError
from sparsedraft.base.yamlfiles import read_yaml
from sparsedraft.recipe.reading import read
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.stages.report.older import expected_parts

GOOD = "target: t\ndrafters: [{name: a, prune: {}}]\n"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
TEXTS: tuple[tuple[bytes, str], ...] = (
    (b"", "is not a mapping"),
    (b"[]", "is not a mapping"),
    (b"5", "is not a mapping"),
    (b"target: [", "not readable YAML"),
    (b"\xff\xfe\x00target", "not readable YAML"),
    (b"target: t\x00", "not readable YAML"),
    (f"target: t\ntarget: u\n{GOOD[10:]}".encode(), "'target' stands twice"),
    (f"{GOOD}eval: {{limit: 1, limit: 2}}\n".encode(), "'limit' stands twice"),
    (b"target: " + b"[" * 100_000, "nested too deep"),
    (b"target: " + b"[" * 200 + b"]" * 200, "nested too deep"),
    (b"target: " + b"{a: " * 60 + b"}" * 60, "nested too deep"),
    (BOMB.encode(), "aliases stand for more than"),
    (b"target: &a [*a]\n", "nested too deep"),
    (b"target: !!python/object/apply:os.getcwd []\n", "not readable YAML"),
    (b"target: !!set {a, b}\n" + GOOD[10:].encode(), ""),
    (b"? [a, b]\n: c\n", "no plain value"),
    (b"1: x\n", "the key 1"),
    (b"null: x\n" + GOOD.encode(), "the key None"),
    (b"target: ${drafter}\ndrafter: ${target}\n" + GOOD[10:].encode(), "not readable YAML"),
    (b"target: ${nothing.at.all}\n" + GOOD[10:].encode(), "not readable YAML"),
    (GOOD.encode() + b"x: '" + b"y" * (1 << 20) + b"'\n", "bytes are more than"),
)
ODD: tuple[Any, ...] = ("abc", {}, [[]], None, -1, float("inf"), True, {"a": {"b": []}}, ["x", None], 10**30)


@pytest.mark.parametrize(("text", "message"), TEXTS, ids=[str(i) for i in range(len(TEXTS))])
def test_what_is_no_recipe(text: bytes, message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text)
    for command in ("plan", "run"):
        assert call(monkeypatch, command, file, *(["--out", tmp_path / "out"] if command == "run" else [])) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert said.startswith("error: recipe") or said.startswith(f"error: {file}"), said
        assert message in said and len(said) < 700, said
    assert not (tmp_path / "out").exists()
    expected_parts(tmp_path)


def test_every_field_of_another_type(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    whole = Recipe.model_validate({"target": "t", "drafters": [{"name": "a", "prune": {}}]})
    good = whole.model_dump(mode="json")
    paths = [(name,) for name in good]
    paths += [(name, field) for name, part in good.items() if isinstance(part, dict) for field in part]
    paths += [("drafters", 0, field) for field in good["drafters"][0]]
    for number, path in enumerate(paths):
        for value in (ODD[number % len(ODD)], ODD[(7 * number + 3) % len(ODD)]):  # each meets some twenty fields
            changed = json.loads(json.dumps(good))
            at = changed
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = value
            file.write_text(json.dumps(changed))
            with suppress(UserError):
                read(file)


def test_what_people_write_stays_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("target: t\nfinetune: &f {learning_rate: 1e-4}\ndrafters: [{name: a, prune: {pattern: 2:4}}]\n")
    recipe = read(file, ["finetune.learning_rate=3e-4"])
    assert recipe.finetune.learning_rate == 3e-4 and recipe.prune_of(recipe.drafters[0]).pattern == "2:4"
    file.write_text("base: &base {a: 1}\nmerged: {<<: *base, b: 2}\nlist: [*base, *base]\n")
    assert read_yaml(file) == {"base": {"a": 1}, "merged": {"a": 1, "b": 2}, "list": [{"a": 1}, {"a": 1}]}
