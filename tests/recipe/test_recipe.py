"""The recipe: typed, overridable, and clear about what is wrong."""

from pathlib import Path

import pytest

from places import ROOT
from sparsedraft import plan
from sparsedraft.base.errors import UserError
from sparsedraft.recipe import reading as recipes

GOOD = """
target: some/model
drafters:
  - {name: half, prune: {sparsity: 0.5}}
  - {name: cut, drop_layers: {match_macs: half}}
  - {name: sd2, start: half, finetune: true}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_defaults_overrides_and_round_trip(tmp_path: Path) -> None:
    found = recipes.read(written(tmp_path, GOOD), ["finetune.learning_rate=3e-4", "eval.k=[2,4]", "seed=7"])
    assert (found.finetune.learning_rate, found.eval.k, found.seed) == (3e-4, (2, 4), 7)
    assert found.prune.method == "sparsegpt" and found.eval.prompts == "demo:eval"
    assert recipes.read(written(tmp_path, recipes.dump(found))) == found


def test_a_bare_off_is_what_it_says(tmp_path: Path) -> None:
    """YAML 1.1 reads it as false."""
    found = recipes.read(written(tmp_path, "target: t\ndrafters: [{name: a}]\neval: {uag: off}\n"))
    assert found.eval.uag == "off" and recipes.read(written(tmp_path, recipes.dump(found))) == found


def test_a_drafters_own_pruning_goes_on_top(tmp_path: Path) -> None:
    found = recipes.read(written(tmp_path, GOOD), ["prune.tokens=99"])
    how = found.prune_of(found.drafters[0])
    assert (how.tokens, how.sparsity, how.pattern) == (99, 0.5, "unstructured")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finetune.lerning_rate=1"], r"finetune\.lerning_rate is not a known key; did you mean learning_rate\?"),
        (["distill.near_duplicates=0.8"], r"near_duplicates is not a known key; did you mean rules\.near_duplicates\?"),
        (["distill.openings=Who"], r"distill\.openings = 'Who' is not possible: give a list"),
        (["drafters=[]"], r"drafters = \[\] is not possible: give at least one"),
        (["distill.mode=magpie", "distill.limit=9"], "so give none .prompts: null in a recipe."),
        (["finetune.learning_rate=fast"], r"finetune\.learning_rate = 'fast' is not possible"),
        (["eval.k=[0]"], r"eval\.k\.0 = 0 is not possible: k is a whole number from 1 to 1024, or auto"),
        (["eval.k=[best]"], r"eval\.k\.0 = .best. is not possible"),
        (["eval.k=[3, auto]"], "k auto needs the real loop: turn simulate off"),
        (["eval.k=[auto]", "eval.simulate=false"], "k needs at least one number"),
        (["sampled={}"], "sampled: is the evaluation under sampling: set its temperature"),
        (["distill.mode=magpie", "distill.limit=9"], "prompts demo:train and mode magpie do not go together"),
        (["distill.prompts=null"], "mode respond needs prompts to answer"),
        (["distill.prompts=null", "distill.mode=magpie", "distill.limit=null"], "limit must say how many"),
        (["distill.weights=int8"], "which only the engine native runs"),
        (
            [
                "distill.weights=int8",
                "distill.engine=native",
                "drafters=[{name: a, finetune: {loss: kl, teacher: true}}]",
            ],
            "lets a rounded one write the data",
        ),
        (["eval.k=[]"], "k needs at least one number"),
        (["prune.pattern=2:4", "prune.sparsity=0.75"], r"2:4"),
        (["prune.pattern=5:4"], r"5:4"),
        (["prune.sparsity=1.5"], r"prune\.sparsity = 1\.5"),
        (["finetune.patience=-1"], r"finetune\.patience = -1 is not possible"),
        (["dtype=float16"], "dtype float16 is no arithmetic to train in: set float32 or bfloat16"),
        (["drafters=[]"], "drafters"),
        (["baseline=best"], "baseline 'best' is no drafter that is evaluated: name one with report: true"),
        (["drafters=[{name: a, start: b}]"], "'a' has start 'b', which no drafter is called"),
        (["drafters=[{name: a, start: a}]"], "made from itself"),
        (["drafters=[{name: a}, {name: a}]"], "'a' occurs twice"),
        (["drafters=[{name: 'a:b'}, {name: aofb}]"], "occurs twice"),
        (["drafters=[{name: a, prune: {}, drop_layers: {layers: 1}}]"], "either prune or drop_layers"),
        (["drafters=[{name: a, drop_layers: {}}]"], "either layers or match_macs"),
        (["drafters=[{name: a, prune: {sparsty: 0.5}}]"], "sparsty"),
        (["nonsense"], "not of the form section.field=value"),
        (
            ["finetune.nll_weight=0.5"],
            "nll_weight 0.5 needs a loss that compares with the target: set loss to one of kl",
        ),
        (["finetune.on_policy=0.5"], "on_policy 0.5 needs a loss that compares with the target"),
        (["finetune.loss=kl", "finetune.nll_weight=1", "finetune.on_policy=0.1"], "nll_weight 1 leaves nothing"),
        (["finetune.quantize=int3"], r"finetune\.quantize = 'int3' is not possible"),
        (["drafters=[{name: a, prune: {}, finetune: {los: kl}}]"], "los is not a known key; did you mean loss"),
        (["drafters=[{name: a, finetune: true}]", "finetune.reselect_every=5"], "'a' has no mask"),
        (
            [
                "drafters=[{name: a, drop_layers: {layers: 1}}, {name: b, start: a, finetune: true}]",
                "finetune.feature_weight=1",
            ],
            "'b' has lost layers, so feature_weight has none",
        ),
        (["drafters=[{name: a, prune: {}, gradual: [0.3]}]"], "gradual prunes and fine-tunes in turns"),
        (["drafters=[{name: a, gradual: [0.3], finetune: true}]"], "gradual prunes and fine-tunes in turns"),
        (
            ["drafters=[{name: a, prune: {}, gradual: [0.5], finetune: true}]"],
            "'a' has gradual 0.5, which does not rise to 0.5",
        ),
        (["drafters=[{name: a, prune: {}, gradual: [0.4, 0.3], finetune: true}]"], "0.4, 0.3, which does not rise"),
        (["drafters=[{name: a, prune: {pattern: 2:8}, gradual: [6:8, 1:4], finetune: true}]"], "in groups of 8"),
        (["drafters=[{name: a, prune: {}, gradual: [1.5], finetune: true}]"], r"sparsity = 1\.5"),
        (["drafters=[{name: a, prune: {}, gradual: ['6:8'], finetune: true}]"], "sparsity = '6:8'"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        recipes.read(written(tmp_path, GOOD), overrides)
    assert "\n" not in str(raised.value)


def test_gradual_becomes_a_chain_of_prunings_and_shares_out_the_tokens(tmp_path: Path) -> None:
    text = """
target: some/model
finetune: {tokens: 1001}
drafters:
  - {name: a, prune: {sparsity: 0.5, method: wanda}, gradual: [0.3, 0.4], finetune: true}
  - {name: b, prune: {pattern: 2:8}, gradual: [6:8, 4:8], finetune: {tokens: null, loss: kl}}
  - {name: c, prune: {}}
  - {name: d, finetune: {}}
"""
    found = recipes.read(written(tmp_path, text))
    a, b, c, d = found.drafters
    assert [(how.sparsity, how.method) for how in found.prunings(a)] == [(s, "wanda") for s in (0.3, 0.4, 0.5)]
    assert [how.pattern for how in found.prunings(b)] == ["6:8", "4:8", "2:8"]
    assert [len(found.prunings(entry)) for entry in (c, d)] == [1, 0]
    assert (
        found.budgets(a, 7) == [333, 334, 334]
        and found.budgets(b, 90) == [30, 30, 30]
        and found.budgets(d, 7) == [1001]
    )
    assert found.finetune_of(a).loss == "nll" and found.finetune_of(b).loss == "kl" and d.trained and not c.trained
    assert recipes.read(written(tmp_path, recipes.dump(found))) == found


@pytest.mark.parametrize("text", ["target: [", "- a\n- b\n", "", "drafters: [{name: a}]"])
def test_unreadable_recipes(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="recipe"):
        recipes.read(written(tmp_path, text))
    with pytest.raises(UserError, match="no such file"):
        recipes.read(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda p: p.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    recipes.read(path)


def test_smollm2_recipe_names_the_five_drafters_in_the_tables_order() -> None:
    found = recipes.read(ROOT / "recipes" / "smollm2.yaml")
    names = [entry.name for entry in found.drafters if entry.report]
    assert names == ["layer-pruned", "layer-pruned+distilled", "sparse-50", "sd2-50", "sd2-2:4"]


def test_plan_asks_for_no_weights_and_skips_the_prompts_that_distill_skips(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    asked = []

    def locate(ref: str, weights: bool = True) -> Path:
        asked.append(weights)
        return Path(ref)

    monkeypatch.setattr("sparsedraft.plan.model.locate", locate)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "why?"}\n{"prompt": 3}\n{"prompt": "how?"}\n')
    (tmp_path / "recipe.yaml").write_text(
        f"target: {tiny_checkpoint}\ndistill: {{prompts: {tmp_path}/prompts.jsonl}}\ndrafters: [{{name: a}}]\n"
    )
    with pytest.raises(UserError, match="line 2"):
        plan.plan_recipe(recipes.read(tmp_path / "recipe.yaml"), gflops=100)
    found = plan.plan_recipe(recipes.read(tmp_path / "recipe.yaml", ["distill.skip_bad=true"]), gflops=100)
    assert found["stages"][0]["tokens"] == 2 * 256 and asked and not any(asked)
