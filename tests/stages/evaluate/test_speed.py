"""A recipe's `speed`: drafters packed, timed in the real loop, and shown in the report."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from sparsedraft.base.errors import UserError
from sparsedraft.native.packed_folder import is_packed
from sparsedraft.plan import plan_recipe
from sparsedraft.recipe import reading as recipes
from sparsedraft.run import run_recipe

RECIPE = """
target: {target}
distill: {{limit: 12, max_new_tokens: 8, batch_size: 8}}
prune: {{tokens: 512, sequence_length: 64}}
drafters:
  - {{name: half, prune: {{sparsity: 0.5}}}}
  - {{name: "2:8", prune: {{pattern: 2:8}}}}
eval: {{k: [1, 3], max_new_tokens: 12, limit: 4}}
speed: {{k: [2, auto], limit: 3, max_new_tokens: 12, head_tokens: 200, pack_target: {pack_target}}}
"""


@pytest.mark.parametrize("pack_target", [False, True])
def test_packed_drafters_are_timed_and_shown(tiny_checkpoint: Path, tmp_path: Path, pack_target: bool) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(target=tiny_checkpoint, pack_target=str(pack_target).lower()))
    recipe = recipes.read(tmp_path / "recipe.yaml")
    result = run_recipe(recipe, tmp_path / "out")
    timed = result["speed"]
    assert [d["name"] for d in timed["drafters"]] == ["half", "2:8"] and not timed["simulated"]
    assert [d["pattern"] for d in timed["drafters"]] == ["unstructured", "2:8"]
    assert timed["target"].endswith("packed/.target-int8") == pack_target and timed["prompts"] == 3
    packed = [tmp_path / "out" / "packed" / name for name in ("half", "2of8")]
    assert all(is_packed(folder) for folder in packed)
    html = Path(result["report"]).read_text()
    markdown = Path(result["report"]).with_suffix(".md").read_text()
    for d in timed["drafters"]:
        for k in ("2", "auto"):
            measured = d["k"][k]["measured"]
            assert measured["tokens_per_second"] > 0 and measured["c"] >= 0
            low, high = measured["speedup_interval"]
            assert 0 < low <= measured["speedup"] <= high
            factor = f"{measured['speedup']:.2f}x ({low:.2f}-{high:.2f})"
            whole = measured["end_to_end"]
            low, high = whole["speedup_interval"]
            assert 0 < low <= whole["speedup"] <= high
            row = [
                d["name"],
                k,
                f"{measured['tokens_per_second']:.1f}",
                factor,
                f"{whole['speedup']:.2f}x ({low:.2f}-{high:.2f})",
            ]
            assert "| " + " | ".join(row) in markdown and all(f"<td>{cell}</td>" in html for cell in row)
    assert "Measured speed, drafters packed" in html and "The target alone:" in markdown
    assert plan_recipe(recipe, gflops=100)["stages"][-1]["stage"] == "speed"


def test_parts_may_be_added_to_a_finished_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The report is made again, all else stays; the recipe that was there before still finds everything done."""
    whole = RECIPE.format(target=tiny_checkpoint, pack_target="false")
    plain = whole[: whole.index("speed:")]
    sampled = "sampled: {prompts: demo:eval, temperature: 1.0, k: [2], max_new_tokens: 12, limit: 2}\n"
    titles = []
    for number, text in enumerate((plain, whole, whole + sampled, plain)):
        (tmp_path / "recipe.yaml").write_text(text)
        before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("drafters/**/*.safetensors")}
        result = run_recipe(recipes.read(tmp_path / "recipe.yaml"), tmp_path / "out")
        assert all(file.stat().st_mtime_ns == time for file, time in before.items()) and bool(before) == bool(number)
        markdown = Path(result["report"]).with_suffix(".md").read_text()
        titles.append(("Measured speed" in markdown, "Under sampling" in markdown))
    assert titles[:3] == [(False, False), (True, False), (True, True)]


def test_impossible(tiny_checkpoint: Path, tiny_llama, tokenizer, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(target=tiny_checkpoint, pack_target="false"))
    with pytest.raises(UserError, match=r"speed\.k = \[\] is not possible"):
        recipes.read(tmp_path / "recipe.yaml", ["speed.k=[]"])
    with pytest.raises(UserError, match=r"speed\.heads is not a known key"):
        recipes.read(tmp_path / "recipe.yaml", ["speed.heads=9"])
    tiny_llama().save_pretrained(tmp_path / "stranger")
    other = PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint)
    other.add_tokens(["zebra"])
    other.save_pretrained(tmp_path / "stranger")
    recipe = recipes.read(tmp_path / "recipe.yaml", [f"drafter={tmp_path / 'stranger'}"])
    with pytest.raises(UserError, match=r"speed\.head_tokens trims by the target's tokens"):
        run_recipe(recipe, tmp_path / "out")
    for overrides, message in (
        (["eval.uag=off"], r"eval\.uag is off"),
        (["eval.simulate=false", "eval.tree=2"], r"eval\.tree 2 needs one tokenizer"),
        (
            ["eval.prompts=nope.jsonl", "allow_overlap=true"],
            r"nope\.jsonl: there is no such file",
        ),
    ):
        given = [f"drafter={tmp_path / 'stranger'}", "speed.head_tokens=null", *overrides]
        with pytest.raises(UserError, match=message):
            run_recipe(recipes.read(tmp_path / "recipe.yaml", given), tmp_path / "out")
    assert not (tmp_path / "out").exists()
