#!/usr/bin/env bash
# onnxruntime-genai 0.18.0 (its model builder) with onnxruntime 1.32.0 and transformers 5.24.0.
#
# Behaviour: of a llama with one layer, as drafters often are, the builder connects the head to the norm in front of the
# MLP. MLP and final norm are in the file, and nothing reads them; the export ends without a warning, and its logits are
# others. With two layers the export computes what transformers computes.
#
# Guess it refutes: that the number of layers is only how often a loop runs.
#
# Output seen:
#   1 layers: the head reads /model/layers.0/post_attention_layernorm/output_0, logits differ by 0.0656 of 0.4587
#   2 layers: the head reads /model/layers.2/final_norm_layernorm/output_0, logits differ by 0.0000 of 0.4712
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip install -q"
$pip "torch==2.13.0+cpu" 2>/dev/null || $pip "torch==2.13.0+cpu" --index-url https://download.pytorch.org/whl/cpu
$pip "onnxruntime-genai==0.18.0" "onnxruntime==1.32.0" "onnx==1.23.2" "onnx-ir==1.1.0" "transformers==5.24.0"
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HEADS, SIZE = 2, 32
seen = {}
for layers in (1, 2):
    config = LlamaConfig(
        vocab_size=64, hidden_size=HEADS * SIZE, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=256,
    )
    torch.manual_seed(0)
    model, where = LlamaForCausalLM(config).eval(), Path(f"layers-{layers}")
    model.save_pretrained(where)
    tokenizer = Tokenizer(models.BPE({chr(33 + i): i for i in range(64)}, []))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!").save_pretrained(where)
    build = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", where, "-o", f"{where}-onnx"]
    subprocess.run([*build, "-p", "fp32", "-e", "cpu", "-c", "scratch"], check=True, capture_output=True)
    graph = onnx.load(f"{where}-onnx/model.onnx", load_external_data=False).graph
    head = next(node for node in graph.node if "lm_head" in node.name)
    session = onnxruntime.InferenceSession(f"{where}-onnx/model.onnx")
    ids = torch.arange(2, 22)[None]
    feed = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 20), np.int64)}
    feed |= {i.name: np.zeros((1, HEADS, 0, SIZE), np.float32) for i in session.get_inputs() if "past" in i.name}
    with torch.no_grad():
        expected = model(ids).logits[0].numpy()
    most = float(np.abs(session.run(["logits"], feed)[0][0] - expected).max())
    seen[layers] = most, head.input[0]
    print(f"{layers} layers: the head reads {head.input[0]}, logits differ by {most:.4f} of {np.abs(expected).max():.4f}")
wrong = seen[1][0] > 1e-2 and "post_attention" in seen[1][1]
sys.exit(0 if wrong and seen[2][0] < 1e-4 and "final_norm" in seen[2][1] else "changed: see above")
PY
