"""Checkpoints say what they are in the names that older readers know (`other_readers.py` reads them with such)."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

import other_readers
from sparsedraft.models import checkpoint
from sparsedraft.models.config.older_names import tokenizer_with_older_names, with_older_names
from stages import drop_layers, prune
from tiny import build_llama, build_tokenizer

IDS = torch.randint(0, 300, (1, 200), generator=torch.Generator().manual_seed(0))
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
FIELDS = {  # what transformers 4.57 and mlx-lm read
    "llama default": {"rope_theta": 1e5, "rope_scaling": None, "torch_dtype": "float32"},
    "llama llama3": {"rope_theta": 1e5, "rope_scaling": {"type": "llama3", "rope_type": "llama3", **LLAMA3}},
    "qwen3": {
        "rope_theta": 1e5,
        "rope_scaling": {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    },
    "gemma3": {
        "rope_theta": 1e5,
        "rope_local_base_freq": 3e4,
        "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 3,
    },
    "phi3 partial": {"rope_theta": 1e5, "partial_rotary_factor": 0.75, "rope_scaling": None},
    "phi3 longrope": {"rope_theta": 1e5, "rope_scaling": {"type": "longrope", **other_readers.LONG}},
    "gpt-neox": {"rotary_emb_base": 1e5, "rotary_pct": 0.5, "rope_scaling": None},
}
NEW = ("rope_parameters", "dtype")  # what transformers 5 alone writes


def without_new_names(folder: Path) -> Path:
    """The folder as an older reader sees it."""
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if k not in NEW}))
    return folder


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return hf.AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


@pytest.mark.parametrize("name", other_readers.models())
def test_the_old_names_alone_give_the_same_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(other_readers.models()[name]).eval()
    with torch.no_grad():
        expected = model(IDS).logits
    checkpoint.save(model, build_tokenizer(), tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert {key: fields[key] for key in FIELDS.get(name, {})} == FIELDS.get(name, {})
    assert torch.equal(logits(tmp_path), expected), "with both"
    assert torch.equal(logits(without_new_names(tmp_path)), expected), "with the old names alone"
    assert with_older_names(fields) == fields, "names are added once"


def test_every_stage_writes_them(tmp_path: Path) -> None:
    """A source that transformers 5 wrote goes through the stages that copy or cut its config."""
    source = tmp_path / "source"
    build_llama(rope_parameters={"rope_type": "default", "rope_theta": 1e5}).save_pretrained(source)
    build_tokenizer().save_pretrained(source)
    small = {"tokens": 256, "sequence_length": 64}
    prune(str(source), tmp_path / "pruned", "demo:train", **small)
    drop_layers(str(source), tmp_path / "cut", "demo:train", layers=1, **small)
    for name in ("pruned", "cut"):
        assert json.loads((tmp_path / name / "config.json").read_text())["rope_theta"] == 1e5
        told = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert told["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_tokenizer_that_transformers_4_reads() -> None:
    fields = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|x|>"], "eos_token": "</s>"}
    assert tokenizer_with_older_names(fields) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<|x|>"],
        "eos_token": "</s>",
    }
    kept = {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": {"image_token": "<image>"}}
    assert tokenizer_with_older_names(kept) == kept


def test_the_tokenizer_stays_the_same(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    checkpoint.save(build_llama(vocab_size=384), tokenizer, tmp_path)
    again = checkpoint.load_tokenizer(tmp_path)
    assert again("a <|x|> b<|im_end|>")["input_ids"] == tokenizer("a <|x|> b<|im_end|>")["input_ids"]
    assert again.all_special_ids == tokenizer.all_special_ids and again.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("layer_types", "pattern"),
    [("ssfssf", 3), ("ffff", 1), ("ssss", 5), ("sfsf", 2), ("sssf", 4), ("ssfs", 3), ("sfssf", None), ("fsss", None)],
)
def test_a_pattern_of_layers_is_named_only_where_there_is_one(layer_types: str, pattern: int | None) -> None:
    named = ["full_attention" if kind == "f" else "sliding_attention" for kind in layer_types]
    fields = {"model_type": "gemma3_text", "layer_types": named, "sliding_window_pattern": 6}
    assert with_older_names(fields)["sliding_window_pattern"] == pattern


def test_a_wrappers_text_model_is_named_too_and_unknown_families_are_left_alone() -> None:
    rope = {"rope_theta": 5e5, "rope_type": "default"}
    inner = with_older_names({"model_type": "llava", "text_config": {"model_type": "llama", "rope_parameters": rope}})
    assert inner["text_config"]["rope_theta"] == 5e5 and "rope_theta" not in inner
    young = {"model_type": "younger", "rope_parameters": {"full_attention": rope, "sliding_attention": rope}}
    assert with_older_names(young) == young
