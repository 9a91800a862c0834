"""GGUF files give the model that is in them, with its rotary embedding; what would be lost is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from ggufs import rope_freqs, rounded, same, write_gguf
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from tiny import build_llama

HEAD = 16
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
YARN_KEYS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.finetuned": True,
}
LINEAR_KEYS = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}
Write = Any


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEDRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.mark.parametrize(
    ("rope", "keys", "factors"),
    [
        (LLAMA3, {}, lambda: {"rope_freqs.weight": rope_freqs(LLAMA3, HEAD)}),
        ({**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 100}, {}, None),
        (YARN, YARN_KEYS, dict),
        (
            {**YARN, "attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0},
            YARN_KEYS
            | {f"rope.scaling.yarn_{n}": v for n, v in (("attn_factor", 1.3), ("beta_fast", 16.0), ("beta_slow", 2.0))},
            dict,
        ),
        ({"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5}, LINEAR_KEYS, dict),
        ({"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5}, {"rope.scale_linear": 2.5}, dict),
        ({"rope_type": "default", "rope_theta": 10_000.0}, {"rope.freq_base": None, "rope.scaling.type": "none"}, dict),
        ({"rope_type": "default", "rope_theta": 123_456.0}, {"rope.scaling.factor": 1.0}, dict),
    ],
    ids=["llama3", "llama3-other", "yarn", "yarn-all", "linear", "linear-old", "no-base", "none"],
)
def test_rotary_embeddings(
    tmp_path: Path, tokenizer: Any, rope: dict[str, Any], keys: dict[str, Any], factors: Any
) -> None:
    model = rounded(build_llama(layers=2, rope_parameters=dict(rope)))
    extra = factors() if factors else {"rope_freqs.weight": rope_freqs(rope, HEAD)}
    write_gguf(tmp_path / "a.gguf", model, tokenizer, keys, extra)
    found = same(model, checkpoint.find(tmp_path / "a.gguf"))
    at = torch.arange(400)[None]
    for ours, theirs in zip(
        found.model.rotary_emb(at.float(), at), model.model.rotary_emb(at.float(), at), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq, rtol=0, atol=1e-6)


def test_long_rope_and_a_window(tmp_path: Path, tokenizer: Any) -> None:
    config = build_llama().config.to_dict()
    rope = {"short_factor": [1 + i / 8 for i in range(6)], "long_factor": [2.5 + i for i in range(6)]}
    keep = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "initializer_range",
    )
    model = rounded(
        hf.Phi3ForCausalLM(
            hf.Phi3Config(
                **{name: config[name] for name in keep},
                num_hidden_layers=2,
                max_position_embeddings=512,
                original_max_position_embeddings=64,
                pad_token_id=0,
                sliding_window=40,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 10_000.0,
                    "partial_rotary_factor": 0.75,
                    **rope,
                },
            )
        )
    )
    keys = {
        "rope.dimension_count": 12,
        "rope.scaling.original_context_length": 64,
        "rope.scaling.attn_factor": (1 + 3 / 6) ** 0.5,  # log 8 / log 64
        "attention.sliding_window": 40,
    }
    extra = {f"rope_factors_{n}.weight": torch.tensor(rope[f"{n}_factor"]) for n in ("long", "short")}
    write_gguf(tmp_path / "a.gguf", model, tokenizer, keys, extra)
    folder = checkpoint.find(tmp_path / "a.gguf")
    for length in (50, 300):  # on either side of the switch
        same(model, folder, length)


def test_layers_with_a_rotary_embedding_of_their_own(tmp_path: Path, tokenizer: Any) -> None:
    config = build_llama().config.to_dict()
    keep = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "initializer_range",
    )
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
    }
    settings = {"head_dim": HEAD, "query_pre_attn_scalar": HEAD, "sliding_window": 24, "rope_parameters": rope}
    model = rounded(
        hf.Gemma3ForCausalLM(
            hf.Gemma3TextConfig(
                **{name: config[name] for name in keep}, num_hidden_layers=7, pad_token_id=0, **settings
            )
        )
    )
    keys = {
        **LINEAR_KEYS,
        "rope.scaling.factor": 8.0,
        "rope.freq_base_swa": 20_000.0,
        "attention.sliding_window": 24,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
    }
    write_gguf(tmp_path / "a.gguf", model, tokenizer, keys)
    same(model, checkpoint.find(tmp_path / "a.gguf"))


def test_biases_and_heads_of_another_width(tmp_path: Path, tokenizer: Any) -> None:
    llama = rounded(build_llama(layers=2, attention_bias=True, mlp_bias=True, head_dim=24, tie_word_embeddings=False))
    write_gguf(tmp_path / "llama.gguf", llama, tokenizer, {"attention.key_length": 24, "attention.value_length": 24})
    same(llama, checkpoint.find(tmp_path / "llama.gguf"))
    config = build_llama().config
    small = {
        name: getattr(config, name) for name in ("vocab_size", "hidden_size", "intermediate_size", "initializer_range")
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "num_hidden_layers": 2}
    qwen = rounded(hf.Qwen3ForCausalLM(hf.Qwen3Config(**small, **heads, max_position_embeddings=512)))
    keys = {"attention.key_length": 24, "attention.value_length": 24, "rope.dimension_count": None}
    write_gguf(tmp_path / "qwen.gguf", qwen, tokenizer, keys)
    same(qwen, checkpoint.find(tmp_path / "qwen.gguf"))


@pytest.mark.parametrize(
    ("keys", "extra", "message"),
    [
        ({"rope.scaling.type": "ntk"}, {}, "rope.scaling.type 'ntk' is none of"),
        ({"rope.scaling.type": "longrope"}, {}, "does not go with its tensors"),
        (YARN_KEYS | {"rope.scaling.yarn_log_multiplier": 0.1}, {}, "yarn_log_multiplier is 0.1"),
        (YARN_KEYS, {"rope_freqs.weight": torch.full((8,), 2.0)}, "yarn and the tensor rope_freqs.weight together"),
        ({}, {"rope_freqs.weight": torch.tensor([1.0, 3, 1, 7, 2, 2, 5, 8])}, "no kind of scaling that is known"),
        ({}, {"rope_freqs.weight": torch.full((7,), 2.0)}, "no kind of scaling that is known"),
        ({"rope.dimension_count": 8, "attention.key_length": 16}, {}, "rope.dimension_count is 8 of 16"),
        ({"rope.freq_base_swa": 5.0}, {}, "freq_base_swa is 5.0"),
        ({"rope.dimension_sections": [4, 2, 2]}, {}, r"rope.dimension_sections \(\[4, 2, 2\]\) has no place"),
        ({"expert_count": 8}, {}, r"llama.expert_count \(8\) has no place"),
        ({"attention.scale": 0.5}, {}, r"attention.scale \(0.5\) has no place"),
        ({"context_length": None}, {}, "context_length is None"),
        ({"attention.layer_norm_rms_epsilon": None}, {}, "has no llama.attention.layer_norm_rms_epsilon"),
        ({"block_count": 4_000_000_000}, {}, "claims 4,000,000,000 layers"),
        ({"feed_forward_length": 4_000_000_000}, {}, "tensors hold .* numbers, the model that its keys describe has"),
        ({"attention.head_count": 0}, {}, "head_count is 0"),
        ({"rope.freq_base": float("inf")}, {}, "rope.freq_base is inf"),
        ({"rope.freq_base": 0.0}, {}, "rope.freq_base is 0.0"),
        (LINEAR_KEYS | {"rope.scaling.factor": -2.0}, {}, "rope.scaling.factor is -2.0"),
        ({}, {"blk.1.attn_q_norm.weight": torch.ones(16)}, r"no place for 1 tensor \(blk.1.attn_q_norm\)"),
        ({}, {"blk.2.attn_norm.weight": torch.ones(64)}, r"no place for 1 tensor \(blk.2.attn_norm\)"),
    ],
)
def test_what_would_be_lost_is_refused(
    tmp_path: Path, tokenizer: Any, cache: Path, keys: dict[str, Any], extra: dict[str, torch.Tensor], message: str
) -> None:
    write_gguf(tmp_path / "a.gguf", build_llama(layers=2), tokenizer, keys, extra)
    with pytest.raises(UserError, match=message) as raised:
        checkpoint.find(tmp_path / "a.gguf")
    assert "\n" not in str(raised.value) and not [*cache.glob("*")], "nothing is cached, no scratch is left"
