"""A recipe's drafters and target packed in int4: rounded on the run's data, and of the bytes that `plan` says."""

import json
from pathlib import Path

import pytest

from sparsedraft.base.errors import UserError
from sparsedraft.native import extension as native
from sparsedraft.native.architecture import cache_bytes
from sparsedraft.plan import plan_recipe, size_up
from sparsedraft.recipe import reading as recipes
from sparsedraft.run import run_recipe

RECIPE = """
target: {target}
distill: {{limit: 8, max_new_tokens: 8, weights: int4, engine: native}}
prune: {{tokens: 512, sequence_length: 64}}
drafters:
  - {{name: dense}}
  - {{name: half, prune: {{sparsity: 0.5}}}}
  - {{name: "2:4", prune: {{pattern: "2:4"}}}}
  - {{name: rounded, prune: {{pattern: "4:8", quantize: int4}}}}
eval: {{limit: 3, max_new_tokens: 8, k: [2]}}
speed:
  {{weights: int4, head_weights: f16, calibration_tokens: 256, pack_target: true, limit: 2, max_new_tokens: 8, k: [2]}}
"""


@pytest.fixture
def recipe(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(target=tiny_checkpoint))
    return tmp_path / "recipe.yaml"


@pytest.mark.slow
@pytest.mark.skipif(not native.is_built(), reason="not built")
def test_all_is_rounded_on_the_data_but_what_pruning_has_rounded(recipe: Path, tmp_path: Path) -> None:
    typed = recipes.read(recipe)
    (planned,) = (stage for stage in plan_recipe(typed, gflops=100)["stages"] if stage["stage"] == "pack")
    run_recipe(typed, tmp_path / "run")
    packed = tmp_path / "run" / "packed"
    names = ["dense", "half", "2of4", "rounded", ".target-int4-head-f16-calibrated"]
    results = {name: json.loads((packed / name / "result.json").read_text()) for name in names}
    assert {name for name, result in results.items() if "calibration_tokens" not in result} == {"rounded"}
    assert all(result["calibration_tokens"] <= 256 for name, result in results.items() if name != "rounded")
    assert {(result["weights"], result["head_weights"]) for result in results.values()} == {("int4", "f16")}
    assert json.loads((packed / ".target-int4/result.json").read_text())["head_weights"] == "int8", "it wrote the data"
    card = (tmp_path / "run/report/cards/half.md").read_text()
    assert f"Packed (int4, embedding and head f16, rounded on {results['half']['calibration_tokens']} tokens" in card
    assert planned["disk_bytes"] == pytest.approx(sum(result["bytes"] for result in results.values()), rel=0.03)
    assert planned["tokens"] == 256 * 5


@pytest.mark.parametrize("embedding", ["int8", None])
@pytest.mark.parametrize("head", ["int8", "int4", "bf16", "q6_k"])
@pytest.mark.parametrize("weights", ["int8", "int4", "f16"])
def test_plan_counts_the_bytes_of_the_types(recipe: Path, weights: str, head: str, embedding: str | None) -> None:
    """Dense linears and heads alone: their weights times the bytes of one."""
    overrides = [f"speed.weights={weights}", f"speed.head_weights={head}", "speed.calibration_tokens=null"]
    overrides += [f"speed.embedding_weights={embedding}"] if embedding else []
    typed = recipes.read(recipe, [*overrides, "drafters=[{name: dense}]"])
    (planned,) = (stage for stage in plan_recipe(typed, gflops=100)["stages"] if stage["stage"] == "pack")
    size = {"int4": 0.5 + 2 / 32, "int8": 1, "f16": 2, "bf16": 2, "q6_k": 210 / 256}
    model = size_up(typed.target)
    table = model.config.vocab_size * model.config.hidden_size
    assert model.config.tie_word_embeddings
    others = model.parameters - model.linears - table  # norms: as they are
    expected = model.linears * size[weights] + table * size[embedding or head] + others * 2
    if embedding not in (None, head):
        expected += table * size[head]  # stored apart
    assert planned["disk_bytes"] == 2 * int(expected) and planned["tokens"] == 0 and planned["device_hours"] == 0


def test_calibration_rounds_int4_alone(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"calibration_tokens 256 are to round int4, and weights are int8: set weights"):
        recipes.read(recipe, ["speed.weights=int8"])


def test_a_head_of_six_bits_is_refused_before_any_work_where_it_does_not_fit(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows of \d+ are no multiple of 256, which q6_k needs: give int8 or int4"):
        run_recipe(recipes.read(recipe, ["speed.head_weights=q6_k"]), tmp_path / "run")
    assert not (tmp_path / "run" / "distilled").exists()


def test_plan_says_what_the_packed_models_take_in_memory(recipe: Path) -> None:
    """Weights as they are packed, keys and values by the text; a drafter with half the layers has half."""
    drafters = "drafters=[{name: dense}, {name: half, drop_layers: {layers: 2}}]"
    typed = recipes.read(recipe, [drafters])
    result = plan_recipe(typed, gflops=100, context_length=1000)
    (packing,) = (stage for stage in result["stages"] if stage["stage"] == "pack")
    found = {model["model"]: model for model in result["running"]}
    assert list(found) == ["target", "dense", "half"]
    assert sum(model["weights_bytes"] for model in found.values()) == pytest.approx(packing["disk_bytes"])
    config = size_up(typed.target).config
    each = cache_bytes(config)
    assert found["target"]["cache_bytes"] == {name: 1000 * size for name, size in each.items()}
    assert all(2 * size == each[name] * 1000 for name, size in found["half"]["cache_bytes"].items())
    longer = plan_recipe(typed, gflops=100, context_length=2000)["running"]
    assert longer[0]["cache_bytes"]["int8"] == 2 * found["target"]["cache_bytes"]["int8"]
    assert plan_recipe(recipes.read(recipe, ["speed=null"]), gflops=100)["running"] == []
