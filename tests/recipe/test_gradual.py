"""Gradual pruning: a recipe's chain of ordinary stages, nested masks, one token budget."""

import json
from pathlib import Path

import pytest

from sparsedraft.base import artifact
from sparsedraft.base.jsonfiles import read_as
from sparsedraft.models import checkpoint, claims
from sparsedraft.models.decoder import count_zeros, decoder_linears
from sparsedraft.plan import plan_recipe
from sparsedraft.recipe import reading as recipes
from sparsedraft.run import run_recipe
from sparsedraft.stages.report.manifest import NAME, Manifest

RECIPE = """
target: {target}
distill: {{limit: 24, max_new_tokens: 12, batch_size: 8, top_k_logprobs: 4}}
prune: {{tokens: 512, sequence_length: 64}}
finetune: {{loss: tvd, sequence_length: 128, rows_per_step: 1, validation_prompts: 4, tokens: 1200}}
drafters:
  - {{name: half, prune: {{sparsity: 0.5}}, gradual: [0.3, 0.4], finetune: {{reselect_every: 2}}}}
  - {{name: "2:8", prune: {{pattern: 2:8}}, gradual: [6:8], finetune: true}}
eval: {{k: [1, 3], max_new_tokens: 8, batch_size: 8, limit: 4}}
"""
CHAINS = {
    "half": (["pruned-1", "finetuned-1", "pruned-2", "finetuned-2", "pruned", "finetuned"], [0.3, 0.4, 0.5]),
    "2of8": (["pruned-1", "finetuned-1", "pruned", "finetuned"], [0.25, 0.75]),
}


@pytest.fixture(scope="module")
def done(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[recipes.Recipe, Path]:
    folder = tmp_path_factory.mktemp("gradual")
    (folder / "recipe.yaml").write_text(RECIPE.format(target=tiny_checkpoint))
    recipe = recipes.read(folder / "recipe.yaml")
    run_recipe(recipe, folder / "out")
    return recipe, folder / "out"


@pytest.mark.parametrize("name", CHAINS)
def test_each_stage_is_an_artifact_and_prunes_further(name: str, done: tuple[recipes.Recipe, Path]) -> None:
    folder, (chain, shares) = done[1] / "drafters" / name, CHAINS[name]
    assert sorted(f.name for f in folder.iterdir()) == sorted(chain)
    models = [decoder_linears(checkpoint.load(folder / stage)) for stage in chain]
    for i, (stage, model) in enumerate(zip(chain, models, strict=True)):
        claim = claims.claim_of(folder / stage)
        assert claim is not None
        for linear_name, linear in model.items():
            size = linear.weight.numel()
            assert count_zeros(linear.weight) == claim["linears"][linear_name] == round(shares[i // 2] * size)
            if i and stage.startswith("pruned"):
                assert bool((linear.weight[models[i - 1][linear_name].weight == 0] == 0).all()), "no zero comes back"
    results = [json.loads((folder / stage / "result.json").read_text()) for stage in chain if "finetuned" in stage]
    budget, row = 1200, 128  # each stage ends on a whole step of at most one row
    assert abs(sum(result["tokens"] for result in results) - budget) <= row * len(results)
    last = artifact.read_provenance(folder / "pruned")
    assert last is not None and last["inputs"]["model"]["path"].endswith(chain[-3])


def test_the_manifest_lists_the_stages_in_their_order(done: tuple[recipes.Recipe, Path]) -> None:
    manifest = read_as(done[1] / NAME, Manifest)
    stages = {drafter.name: [stage.folder for stage in drafter.stages] for drafter in manifest.drafters}
    assert stages == {
        name.replace("of", ":"): [f"drafters/{name}/{s}" for s in chain] for name, (chain, _) in CHAINS.items()
    }
    assert [*manifest.parts] == ["distilled", "eval"] and manifest.baseline is None


def test_a_second_run_does_nothing(done: tuple[recipes.Recipe, Path]) -> None:
    recipe, out = done
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    run_recipe(recipe, out)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == before and len(before) == 10


def test_plan_counts_every_stage(done: tuple[recipes.Recipe, Path]) -> None:
    stages = plan_recipe(done[0], gflops=100)["stages"]
    assert [s["stage"] for s in stages] == [
        "distill",
        *(f"half{step}: {kind}" for step in (" (1 of 3)", " (2 of 3)", "") for kind in ("prune", "finetune")),
        *(f"2:8{step}: {kind}" for step in (" (1 of 2)", "") for kind in ("prune", "finetune")),
        "eval",
    ]
    tuned = [s["tokens"] for s in stages if s["stage"].endswith("finetune")]
    assert tuned == [400, 400, 400, 600, 600]
    once = done[0].model_copy(update={"drafters": [done[0].drafters[1].model_copy(update={"gradual": []})]})
    assert [s["tokens"] for s in plan_recipe(once, gflops=100)["stages"] if s["stage"].endswith("finetune")] == [1200]
