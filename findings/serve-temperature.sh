#!/usr/bin/env bash
# transformers 5.24.0, `transformers serve` (POST /v1/chat/completions).
#
# Behaviour: the request's "temperature" is copied into the model's generation settings, but whether tokens are drawn at
# all is decided by `do_sample` of the checkpoint's own generation_config.json, whose default is false. For a checkpoint
# that does not say do_sample, temperature 1.0 or 100.0, with any seeds, gives the greedy text of temperature 0 each time,
# with status 200 and no word in the answer. With do_sample true in that file the same requests give different texts.
#
# The guess it refutes: that an OpenAI-compatible server samples when it is asked for a temperature above 0, as the API
# that it follows does, so that three seeds at a temperature are three samples.
#
# Output seen:
#   without do_sample: temperature 0 and temperature 1, 100 with seeds 1 to 3: 1 distinct text of 7
#   with do_sample:    temperature 1, 100 with seeds 1 to 3: 6 distinct texts of 6
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu transformers==5.24.0 accelerate fastapi uvicorn openai 2>&1 | tail -1 ||
    "$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 accelerate fastapi uvicorn openai
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home" OMP_NUM_THREADS=1
cat > "$folder/look.py" <<'PYTHON'
import json, os, pathlib, socket, subprocess, sys, time, urllib.request

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

home = pathlib.Path(os.environ["HF_HOME"])
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {token: i for i, token in enumerate(["<|pad|>", "<|end|>", *alphabet])}
bytes_only = Tokenizer(models.BPE(vocabulary, []))
bytes_only.pre_tokenizer, bytes_only.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<|end|>", pad_token="<|pad|>")
tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.2, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )
)
for name, settings in (("without", {}), ("with", {"do_sample": True})):
    folder = home / "hub" / f"models--tiny--{name}" / "snapshots" / ("0" * 40)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, **settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("0" * 40)
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
log = open(home / "log", "w")
command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1", "--port", str(port)]
server = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log)


def ask(name, temperature, seed):
    body = {"model": f"tiny/{name}", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}
    body |= {"temperature": temperature, "seed": seed}
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(asked, timeout=120))["choices"][0]["message"]["content"]


try:
    for _ in range(600):
        assert server.poll() is None, (home / "log").read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            break
        except OSError:
            time.sleep(0.2)
    drawn = [(t, seed) for t in (1.0, 100.0) for seed in (1, 2, 3)]
    deaf = [ask("without", 0.0, 1), *(ask("without", *how) for how in drawn)]
    hears = [ask("with", *how) for how in drawn]
finally:
    server.kill()
print("without do_sample: temperature 0 and temperature 1, 100 with seeds 1 to 3:",
      f"{len(set(deaf))} distinct text of {len(deaf)}")
print("with do_sample:    temperature 1, 100 with seeds 1 to 3:", f"{len(set(hears))} distinct texts of {len(hears)}")
sys.exit(0 if len(set(deaf)) == 1 and len(set(hears)) > 1 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
