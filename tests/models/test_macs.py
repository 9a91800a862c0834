"""MACs per token, from configs and from weights, and the arithmetic of the speed-up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, OPTConfig, Qwen2Config

from sparsedraft.models.decoder import decoder_linears
from sparsedraft.models.macs import macs_of_config, macs_of_model, nonzero_parameters
from sparsedraft.stages.evaluate.speedup import break_even, expected_length, improvement_factor

LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "intermediate_size": 8192, "tie_word_embeddings": True}
QWEN = {"vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True}
PAPER = [  # the SD² paper's models at 50 % on every decoder linear
    (LlamaConfig(**LLAMA, hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, head_dim=128), -43.87),
    (LlamaConfig(**LLAMA, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, head_dim=64), -39.37),
    (
        Qwen2Config(**QWEN, hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, intermediate_size=8960),
        -42.44,
    ),
    (
        Qwen2Config(**QWEN, hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, intermediate_size=11008),
        -44.96,
    ),
]


@pytest.mark.parametrize(("config", "percent"), PAPER)
def test_the_papers_reductions_from_configs_alone(config, percent) -> None:
    change = 100 * (macs_of_config(config, 0.5) / macs_of_config(config) - 1)
    assert change == pytest.approx(percent, abs=0.005)


def test_linears_outside_the_layers_count_beside_the_head() -> None:
    sizes = {"vocab_size": 320, "hidden_size": 64, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    plain, projected = (macs_of_config(OPTConfig(**sizes, word_embed_proj_dim=width)) for width in (64, 32))
    assert projected - plain == 2 * 64 * 32 + 320 * (32 - 64), "project_in and project_out, and a narrower head"


def test_zeros_in_decoder_linears_count_and_no_others(tiny_llama) -> None:
    model = tiny_llama()
    dense = macs_of_model(model)
    assert dense == macs_of_config(model.config)
    with torch.no_grad():
        next(iter(decoder_linears(model).values())).weight[:3].zero_()  # 3 rows of 64 inputs
        model.get_input_embeddings().weight[5].zero_()  # (the pad row is 0 already) the tied head counts whole
    assert macs_of_model(model) == dense - 3 * 64
    nonzero, parameters = nonzero_parameters(model)
    assert parameters - nonzero == 3 * 64 + 64 + 64


def test_improvement_factor_of_plain_decoding_is_one() -> None:
    assert improvement_factor(1.0, 0, 0.5) == 1.0
    assert improvement_factor(3.0, 5, 0.4, 1.5) == pytest.approx(3 / 3.5)


@given(st.integers(1, 16), st.floats(0, 1), st.floats(1, 2))
def test_break_even_is_where_gain_meets_cost(k: int, c: float, v: float) -> None:
    a = break_even(k, c, v)
    if a is None:
        assert v + k * c > k + 1
    else:
        assert 0 <= a <= 1 and expected_length(a, k) == pytest.approx(v + k * c, rel=1e-6)
