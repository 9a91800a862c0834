#!/usr/bin/env bash
# transformers 5.24.0 with gguf 0.19.0.
#
# Behaviour: `from_pretrained(..., gguf_file=...)` leaves out every rope scaling that a GGUF file holds, and says nothing:
# the keys `llama.rope.scaling.*` (yarn, linear) and Llama 3's factors in the tensor `rope_freqs.weight`. The model that
# comes back turns by the plain frequencies. The tensor is not even among the unexpected keys.
#
# Guess it refutes: that a converted Llama 3.1, or a Qwen with YaRN, is the model that the file holds, since the loader
# maps the rope base and all weights, and reports what it did not use.
#
# Output seen:
#   yarn: rope_parameters {'rope_theta': 500000.0, 'rope_type': 'default'}
#   llama3: rope_parameters {'rope_theta': 500000.0, 'rope_type': 'default'}
#   llama3: missing [] unexpected []
#   llama3: largest inverse frequency error 8.0 times
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0+cpu" "transformers==5.24.0" "gguf==0.19.0" "accelerate" 2>/dev/null
cd "$folder"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PY'
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM

HIDDEN, HEADS, MIDDLE, WORDS, BASE, LENGTH = 64, 4, 128, 32, 500_000.0, 8192
DIMS = HIDDEN // HEADS
torch.manual_seed(0)
turns = BASE ** (-torch.arange(0, DIMS, 2) / DIMS) / (2 * torch.pi)
smooth = ((LENGTH * turns - 1) / 3).clamp(0, 1)
factors = 1 / ((1 - smooth) / 8 + smooth)  # Llama 3.1's: factor 8, low 1, high 4


def write(name, scaled_by):
    writer = GGUFWriter(name, "llama")
    writer.add_context_length(131072)
    writer.add_block_count(1)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(BASE)
    writer.add_rope_dimension_count(DIMS)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([chr(97 + i % 26) * (1 + i // 26) for i in range(WORDS)])
    writer.add_token_types([1] * WORDS)
    writer.add_token_merges(["a a"])
    shapes = {"token_embd": (WORDS, HIDDEN), "output": (WORDS, HIDDEN), "output_norm": (HIDDEN,)}
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        shapes[f"blk.0.{part}"] = (HIDDEN, HIDDEN)
    shapes |= {"blk.0.ffn_gate": (MIDDLE, HIDDEN), "blk.0.ffn_up": (MIDDLE, HIDDEN), "blk.0.ffn_down": (HIDDEN, MIDDLE)}
    shapes |= {"blk.0.attn_norm": (HIDDEN,), "blk.0.ffn_norm": (HIDDEN,)}
    for tensor, shape in shapes.items():
        writer.add_tensor(f"{tensor}.weight", torch.randn(shape).numpy())
    scaled_by(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def yarn(writer):
    from gguf import RopeScalingType

    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32768)


write("yarn.gguf", yarn)
write("llama3.gguf", lambda writer: writer.add_tensor("rope_freqs.weight", factors.numpy()))
dropped = True
for name in ("yarn", "llama3"):
    model, info = AutoModelForCausalLM.from_pretrained(".", gguf_file=f"{name}.gguf", output_loading_info=True)
    print(f"{name}: rope_parameters {model.config.rope_parameters}")
    dropped &= model.config.rope_parameters["rope_type"] == "default"
print("llama3: missing", sorted(info["missing_keys"]), "unexpected", sorted(info["unexpected_keys"]))
wrong = (model.model.rotary_emb.inv_freq / (2 * torch.pi * turns / factors)).max().item()
print(f"llama3: largest inverse frequency error {wrong:.1f} times")
raise SystemExit(0 if dropped and not info["unexpected_keys"] and wrong > 7.9 else 1)
PY
