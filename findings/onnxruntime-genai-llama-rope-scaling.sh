#!/usr/bin/env bash
# onnxruntime-genai 0.18.0 (its model builder) with onnxruntime 1.32.0 and transformers 5.24.0.
#
# Behaviour: a llama checkpoint whose rope_parameters say "linear" or "yarn" is exported without a word, and with the
# rotary tables of no scaling at all. The builder knows both kinds: of the same settings in a qwen2 checkpoint it makes
# the tables that transformers has. Only "llama3" is read for llama.
#
# Guess it refutes: that a kind of scaling which the builder implements is either used or refused, whatever the family.
#
# Output seen:
#   llama default: tables differ by 0.000
#   llama llama3: tables differ by 0.000
#   llama linear: tables differ by 2.000, and from those without scaling by 0.000
#   llama yarn: tables differ by 2.139, and from those without scaling by 0.000
#   qwen2 linear: tables differ by 0.000, and from those without scaling by 2.000
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

import onnx
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

FAMILIES = {"llama": LlamaConfig, "qwen2": Qwen2Config}
BASE = {"rope_theta": 10000.0}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = {"factor": 4.0, "original_max_position_embeddings": 512}
SCALINGS = {"default": {}, "linear": {"factor": 4.0}, "yarn": ORIGINAL, "llama3": ORIGINAL | LLAMA3}


def exported(family: str, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(cosines of the export, those of transformers), [positions, half of a head]."""
    config = FAMILIES[family](
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=2048, rope_parameters=BASE | {"rope_type": kind} | SCALINGS[kind],
    )
    where = Path(f"{family}-{kind}")
    AutoModelForCausalLM.from_config(config).save_pretrained(where)
    tokenizer = Tokenizer(models.BPE({chr(33 + i): i for i in range(128)}, []))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!").save_pretrained(where)
    build = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", where, "-o", f"{where}-onnx"]
    subprocess.run([*build, "-p", "fp32", "-e", "cpu", "-c", "scratch"], check=True, capture_output=True)
    tensors = {tensor.name: tensor for tensor in onnx.load(f"{where}-onnx/model.onnx").graph.initializer}
    found = torch.tensor(onnx.numpy_helper.to_array(tensors["cos_cache"]))
    expected = LlamaRotaryEmbedding(config=config)(torch.zeros(1), torch.arange(len(found))[None])[0][0]
    return found, expected[:, : found.shape[1]]


plain = exported("llama", "default")[0]
seen = {}
for family, kind in (("llama", "default"), ("llama", "llama3"), ("llama", "linear"), ("llama", "yarn"), ("qwen2", "linear")):
    found, expected = exported(family, kind)
    seen[family, kind] = float((found - expected).abs().max()), float((found - plain).abs().max())
    beside = f", and from those without scaling by {seen[family, kind][1]:.3f}" if kind in ("linear", "yarn") else ""
    print(f"{family} {kind}: tables differ by {seen[family, kind][0]:.3f}{beside}", flush=True)
ignored = all(seen["llama", kind][0] > 1 and seen["llama", kind][1] < 1e-3 for kind in ("linear", "yarn"))
known = max(seen[which][0] for which in (("llama", "default"), ("llama", "llama3"), ("qwen2", "linear"))) < 1e-2
sys.exit(0 if ignored and known else "changed: see above")
PY
