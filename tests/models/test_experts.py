"""Mixtures of experts as targets: MACs of the active experts, every command that reads them, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM, PretrainedConfig

from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.models.macs import macs_of_config, macs_of_model, nonzero_parameters
from sparsedraft.native.cost import cost_of_model
from sparsedraft.plan import plan_recipe
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.recipe.sections import Speed
from sparsedraft.run import run_recipe
from sparsedraft.stages.finetune.loop import Settings
from sparsedraft.stages.report.cards import _what
from sparsedraft.stages.report.tables import headline, macs_text, main_rows, speed_rows
from stages import distill, drop_layers, evaluate_to, finetune, inspect, pack, prune
from timeless import timeless

SMALL = {"tokens": 512, "sequence_length": 64}
SIZE = {
    "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.2,
}  # fmt: skip
ATTENTION = 32 * 32 + 2 * 16 * 32 + 32 * 32  # q, k and v, o of one layer
HEAD = 320 * 32
# by hand: attention and router of each layer, the active ones of its experts (gate, up, down), shared ones, the head
FAMILIES: dict[str, tuple[Callable[[], PretrainedConfig], int]] = {
    "qwen3": (
        lambda: hf.Qwen3MoeConfig(**SIZE, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=2),
        3 * (ATTENTION + 8 * 32 + 2 * (3 * 24 * 32)) + HEAD,
    ),
    "mixtral": (
        lambda: hf.MixtralConfig(**SIZE, intermediate_size=24, num_local_experts=4, num_experts_per_tok=3),
        3 * (ATTENTION + 4 * 32 + 3 * (3 * 24 * 32)) + HEAD,
    ),
    "qwen2, shared expert, one dense layer": (
        lambda: hf.Qwen2MoeConfig(
            **SIZE, intermediate_size=40, moe_intermediate_size=24, shared_expert_intermediate_size=56, num_experts=6,
            num_experts_per_tok=2, mlp_only_layers=[1],
        ),
        3 * ATTENTION + 2 * (6 * 32 + 2 * (3 * 24 * 32) + 3 * 56 * 32 + 32) + 3 * 40 * 32 + HEAD,
    ),
    "gpt-oss": (
        lambda: hf.GptOssConfig(**SIZE, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2),
        3 * (ATTENTION + 4 * 32 + 2 * (3 * 24 * 32)) + HEAD,
    ),
    "olmoe, all active": (
        lambda: hf.OlmoeConfig(
            **{k: v for k, v in SIZE.items() if k != "head_dim"}, intermediate_size=24, num_experts=4,
            num_experts_per_tok=4,
        ),
        3 * (ATTENTION + 4 * 32 + 4 * (3 * 24 * 32)) + HEAD,
    ),
}  # fmt: skip


def saved(config: PretrainedConfig, tokenizer, folder: Path) -> Path:
    hf.set_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # some families leave expert weights uninitialised, or all zero
        for name, parameter in model.named_parameters():
            if "experts" in name or "router" in name or name.endswith("gate.weight"):
                parameter.normal_(std=0.2)
    checkpoint.save(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def qwen3(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(FAMILIES["qwen3"][0](), tokenizer, tmp_path_factory.mktemp("experts") / "qwen3")


@pytest.mark.parametrize("family", FAMILIES)
def test_macs_are_those_of_the_active_experts(family: str, tokenizer, tmp_path: Path) -> None:
    make, macs = FAMILIES[family]
    folder = saved(make(), tokenizer, tmp_path / "model")
    model = checkpoint.load(folder)
    found = inspect(str(folder))
    assert macs_of_config(make()) == macs_of_model(model) == macs
    assert found["macs_per_token"] == found["macs_dense"] == macs
    weights = cost_of_model(model)
    assert weights["macs_per_token"] == macs and weights["sparsity"] == 0
    assert weights["nonzero_params"] == nonzero_parameters(model)[0] == found["nonzero_parameters"]


def test_zeros_in_experts_count_by_their_share(qwen3: Path, tmp_path: Path, tokenizer) -> None:
    model = checkpoint.load(qwen3)
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj[3] = 0  # one of 8 experts, 32 x 24, of which 2 are active
        model.model.layers[1].self_attn.q_proj.weight[:2] = 0
    fewer = 32 * 24 * 2 // 8 + 2 * 32
    assert macs_of_model(model) == FAMILIES["qwen3"][1] - fewer
    checkpoint.save(model, tokenizer, tmp_path / "zeros")
    assert inspect(str(tmp_path / "zeros"))["macs_per_token"] == FAMILIES["qwen3"][1] - fewer
    assert 0 < cost_of_model(model)["sparsity"] < 0.05


def test_evaluated_as_a_target_and_reported(qwen3: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {"k": [1, 4], "max_new_tokens": 12, "limit": 3, "batch_size": 3}
    drafters = [("tiny", str(tiny_checkpoint)), ("self", str(qwen3)), ("look-up", "lookup")]
    real = evaluate_to(tmp_path / "real", str(qwen3), drafters, "demo:eval", dict(**options))
    simulated = evaluate_to(tmp_path / "simulated", str(qwen3), drafters, "demo:eval", dict(**options, simulate=True))
    assert timeless(real["drafters"]) == simulated["drafters"]
    tiny, itself, lookup = real["drafters"]
    assert real["dense_macs_per_token"] == itself["macs_per_token"] == FAMILIES["qwen3"][1]
    assert itself["alpha"] == itself["c"] == 1 and lookup["c"] == 0
    assert tiny["c"] == macs_of_model(checkpoint.load(tiny_checkpoint)) / FAMILIES["qwen3"][1]


def test_what_macs_are_not_known_of_has_none(qwen3: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    """A layer that holds another matrix than any of those that are known: those columns are left out."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeDecoderLayer

    made = Qwen3MoeDecoderLayer.__init__

    def changed(self, *args, **kwargs) -> None:
        made(self, *args, **kwargs)
        self.register_parameter("mixing", torch.nn.Parameter(torch.eye(4), requires_grad=False))

    source = tmp_path / "odd"
    monkeypatch.setattr(Qwen3MoeDecoderLayer, "__init__", changed)
    checkpoint.save(AutoModelForCausalLM.from_config(FAMILIES["qwen3"][0]()), checkpoint.load_tokenizer(qwen3), source)
    options = {"k": [1, 4], "max_new_tokens": 8, "limit": 2, "batch_size": 2}
    found = evaluate_to(tmp_path / "eval", str(source), [("tiny", str(tiny_checkpoint))], "demo:eval", options)
    (tiny,) = found["drafters"]
    assert found["dense_macs_per_token"] is None and tiny["macs_per_token"] > 0
    assert tiny["c"] is tiny["macs_vs_dense"] is tiny["best_k"] is tiny["k"]["4"]["improvement_factor"] is None
    assert tiny["break_even"] == {"1": None, "4": None} and tiny["k"]["4"]["mal"] >= 1
    assert inspect(str(source))["macs_per_token"] is None
    assert [row[-2:] for row in main_rows(found)[1]] == [["-", "-"]] and speed_rows(found)[1][0][5] == "-"
    assert macs_text(None) == "not known" and "tiny brings" in headline(found, None)
    assert _what(tiny, set()).endswith("million MACs a token.")


def recipe(target: Path, drafter: Path | None, **more: object) -> Recipe:
    entry = {"name": "half", "prune": {"pattern": "2:4"}, **more}
    return Recipe.model_validate({
        "target": str(target), "drafter": str(drafter) if drafter else None,
        "distill": {"prompts": "demo:train", "limit": 24, "max_new_tokens": 12}, "prune": SMALL,
        "eval": {"prompts": "demo:eval", "limit": 3, "max_new_tokens": 8, "k": [1, 3]}, "drafters": [entry],
    })  # fmt: skip


def test_planned_and_run_as_a_target(qwen3: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    planned = plan_recipe(recipe(qwen3, tiny_checkpoint), gflops=100)
    answers = planned["stages"][0]["tokens"]
    assert [s["stage"] for s in planned["stages"]] == ["distill", "half: prune", "eval"]
    assert planned["stages"][0]["device_hours"] > 2 * FAMILIES["qwen3"][1] * answers / (100e9 * 0.3) / 3600
    result = run_recipe(recipe(qwen3, tiny_checkpoint), tmp_path / "run")
    assert result["dense_macs_per_token"] == FAMILIES["qwen3"][1] and result["drafters"][0]["sparsity"] > 0.4


def test_as_the_pruned_model_it_is_refused_before_any_work(qwen3: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    timed = recipe(qwen3, tiny_checkpoint).model_copy(update={"speed": Speed(pack_target=True)})
    reason = "what is pruned, cut or packed, such as the drafter, must be made of plain linears"
    for call in (
        lambda: prune(str(qwen3), tmp_path / "out", "demo:train", **SMALL),
        lambda: drop_layers(str(qwen3), tmp_path / "out", "demo:train", layers=1, **SMALL),
        lambda: plan_recipe(recipe(qwen3, None), gflops=100),
        lambda: run_recipe(recipe(qwen3, None), tmp_path / "out"),
        lambda: pack(str(qwen3), tmp_path / "out"),
        lambda: run_recipe(timed, tmp_path / "out"),  # its target would be packed at the very end
    ):
        with pytest.raises(UserError, match=reason):
            call()
        assert not list(tmp_path.iterdir()), "the target has written nothing"


def test_fine_tuned_whole_it_is_stored_as_it_was(qwen3: Path, tmp_path: Path) -> None:
    distill(str(qwen3), "demo:train", tmp_path / "data", max_new_tokens=12, limit=24, batch_size=8)
    settings = Settings(sequence_length=128, tokens=600, rows_per_step=2)
    finetune(str(qwen3), str(tmp_path / "data"), tmp_path / "tuned", settings=settings, validation_prompts=4)
    before, after = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (qwen3, tmp_path / "tuned"))
    assert before.keys() == after.keys()
    moved = "model.layers.1.mlp.experts.gate_up_proj"
    assert not torch.equal(before[moved], after[moved])
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["model_type"] == "qwen3_moe"
