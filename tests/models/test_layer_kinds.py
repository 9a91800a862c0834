"""What config.json says of each layer must be said of all of them; what a plan costs does not hang on a label."""

import json
from pathlib import Path

import pytest
import transformers as hf
from transformers import AutoModelForCausalLM

from sparsedraft.base.errors import Unsupported, UserError, first_line
from sparsedraft.models import checkpoint
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Engine
from sparsedraft.plan import plan_recipe
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.transformers.abilities import abilities
from stages import evaluate_to, inspect, pack, prune

SIZE = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
BAD = {
    "too few": (["full_attention"], r"`num_hidden_layers` \(3\) must be equal to the number of `layer_types` \(1\)"),
    "too many": (["full_attention"] * 5, r"must be equal to the number of `layer_types` \(5\)"),
    "no list": ("full_attention", "Field 'layer_types' with value 'full_attention'"),
    "of another kind": ([1, 2, 3], "Field 'layer_types' with value"),
    "not known": (["blue_attention"] * 3, "The `layer_types` entries must be in"),
}


def said(folder: Path, **fields: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.parametrize("kind", BAD)
def test_layer_types_that_do_not_fit_are_one_sentence_everywhere(kind: str, tokenizer, tmp_path: Path) -> None:
    types, reason = BAD[kind]
    config = hf.Gemma3TextConfig(
        **SIZE, sliding_window=16, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    )
    model = tmp_path / "model"
    checkpoint.save(AutoModelForCausalLM.from_config(config), tokenizer, model)
    said(model, layer_types=types)
    options = {"k": [1], "max_new_tokens": 4, "limit": 1}
    for call in (
        lambda: LoadedModel.load(model),
        lambda: LoadedModel.load(model, runtime="native"),
        lambda: Engine(model),
        lambda: inspect(str(model)),
        lambda: pack(str(model), tmp_path / "out"),
        lambda: prune(str(model), tmp_path / "out", "demo:train", tokens=256, sequence_length=32),
        lambda: evaluate_to(tmp_path / "out", str(model), [("x", str(model))], "demo:eval", options),
    ):
        with pytest.raises(UserError, match=f"config.json that cannot be read .*{reason}") as raised:
            call()
        assert "\n" not in str(raised.value) and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_engine_counts_them_itself(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    """Not every transformers does; one that reads such a config may run it, so that auto leaves it to that."""
    config = checkpoint.read_config(tiny_checkpoint)
    object.__setattr__(config, "layer_types", ["full_attention"])
    monkeypatch.setattr(checkpoint, "read_config", lambda folder: config)
    with pytest.raises(Unsupported, match=r"has 1 layer_types in config\.json for 4 layers: copy it again"):
        native_model(tiny_checkpoint)


def test_a_first_line_that_says_nothing_yet_is_not_alone() -> None:
    assert first_line(ValueError("Validation error for field 'x':\n   TypeError: no list\nmore")) == (
        "Validation error for field 'x': TypeError: no list"
    )
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(ValueError()) == "ValueError"


def test_a_drafters_name_does_not_choose_what_a_stage_costs(tiny_checkpoint: Path) -> None:
    def hours(name: str) -> list[float]:
        recipe = Recipe.model_validate({
            "target": str(tiny_checkpoint), "drafters": [{"name": name, "prune": {"pattern": "2:4"}}],
            "distill": {"prompts": "demo:train", "limit": 8, "max_new_tokens": 8},
            "eval": {"prompts": "demo:eval", "limit": 2, "max_new_tokens": 8, "k": [1]},
            "speed": {"limit": 1, "max_new_tokens": 8, "k": [1], "acceptance": True},
        })  # fmt: skip
        planned = plan_recipe(recipe, gflops=100)
        assert all("kind" not in stage for stage in planned["stages"])
        return [stage["device_hours"] for stage in planned["stages"]]

    assert hours("my eval") == hours("half") == hours("a speed: finetune")


@pytest.mark.parametrize("vocabulary", [6, 320])
def test_packing_is_tried_with_ids_that_exist(vocabulary: int) -> None:
    """Qwen2 with a window tells packed samples apart by their positions, OPT does not; each at any vocabulary."""
    size = {**SIZE, "vocab_size": vocabulary}
    window = {"sliding_window": 16, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 3}
    qwen = hf.Qwen2Config(**{k: v for k, v in size.items() if k != "head_dim"}, **window)
    unused = ("intermediate_size", "num_key_value_heads", "head_dim", "initializer_range")
    opt = hf.OPTConfig(**{k: v for k, v in size.items() if k not in unused}, ffn_dim=64, word_embed_proj_dim=32)
    for config, packs in ((qwen, True), (opt, False)):
        assert abilities(AutoModelForCausalLM.from_config(config).eval()).packs == packs
