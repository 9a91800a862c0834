"""Decoder families beside llama: pruned, cut, evaluated and decoded through the same stages."""

from pathlib import Path

import pytest
import transformers as hf
from transformers import AutoModelForCausalLM

from sparsedraft import checkpoint, packing
from sparsedraft.decoder import decoder_linears
from sparsedraft.measure.evaluate import Options, evaluate_to
from sparsedraft.prune.stage import drop_layers, prune

SIZE = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SIZE, "num_key_value_heads": 2, "initializer_range": 0.2}
SMALL = {"tokens": 512, "sequence_length": 64}
FAMILIES = {
    "qwen2": hf.Qwen2Config(**GROUPED),
    "qwen3": hf.Qwen3Config(**GROUPED, head_dim=8),
    "mistral with a sliding window": hf.MistralConfig(**GROUPED, sliding_window=16),
    "gemma3": hf.Gemma3TextConfig(
        **GROUPED, head_dim=8, sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi3": hf.Phi3Config(**GROUPED),
    "gpt-neox": hf.GPTNeoXConfig(**SIZE, initializer_range=0.2),
    "opt": hf.OPTConfig(
        **{k: v for k, v in SIZE.items() if k != "intermediate_size"},
        ffn_dim=64, word_embed_proj_dim=32, init_std=0.2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, tokenizer, tmp_path: Path) -> None:
    hf.set_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    checkpoint.save(model, tokenizer, tmp_path / "dense")
    dense = str(tmp_path / "dense")
    prune(dense, tmp_path / "half", "demo:train", pattern="2:4", **SMALL)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    for linear in decoder_linears(plain).values():
        assert int((linear.weight == 0).sum()) == linear.weight.numel() // 2
    assert drop_layers(dense, tmp_path / "cut", "demo:train", layers=1, **SMALL)["dropped"] == 1
    drafters = [("half", str(tmp_path / "half")), ("cut", str(tmp_path / "cut")), ("self", dense)]
    options = {"k": [1, 4], "max_new_tokens": 24, "limit": 4, "batch_size": 3}
    real = evaluate_to(tmp_path / "real", dense, drafters, "demo:eval", Options(**options))
    simulated = evaluate_to(tmp_path / "simulated", dense, drafters, "demo:eval", Options(**options, simulate=True))
    assert packing.packable(model) == (family != "opt"), "OPT builds its mask without the position ids"
    assert real["drafters"] == simulated["drafters"]
    assert real["drafters"][2]["alpha"] == 1 and real["drafters"][2]["k"]["4"]["acceptance_rate"] == 1
