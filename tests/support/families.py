"""Tiny configs of the families of models that are tried throughout."""

import transformers as hf

SIZE = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


GROUPED = {**SIZE, "num_key_value_heads": 2, "initializer_range": 0.2}


SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


FAMILIES = {
    "llama": hf.LlamaConfig(**GROUPED),
    "llama, tied": hf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "mistral with a sliding window": hf.MistralConfig(**GROUPED, sliding_window=16),
    "qwen2": hf.Qwen2Config(**GROUPED),
    "qwen2, tied": hf.Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": hf.Qwen3Config(**GROUPED, head_dim=8),
    "gemma2": hf.Gemma2Config(**GROUPED, head_dim=8, **SLIDING),
    "gemma3": hf.Gemma3TextConfig(**GROUPED, head_dim=8, **SLIDING),
    "phi3": hf.Phi3Config(**GROUPED),
    "olmo2": hf.Olmo2Config(**GROUPED),
    "granite": hf.GraniteConfig(**GROUPED),
    "smollm3": hf.SmolLM3Config(**GROUPED, no_rope_layers=[1, 0, 1]),
    "phi": hf.PhiConfig(**GROUPED),  # its head has a bias
    "gpt-neox": hf.GPTNeoXConfig(**SIZE, initializer_range=0.2),
    "opt": hf.OPTConfig(
        **{k: v for k, v in SIZE.items() if k != "intermediate_size"},
        ffn_dim=64, word_embed_proj_dim=32, init_std=0.2,
    ),
}  # fmt: skip
