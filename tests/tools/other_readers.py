"""Do other readers see the checkpoints that we write as transformers 5 does? By hand: `make other-readers`.

Tiny random models of many families, with a rope base of 100,000, go through fine-tuning's writer, layer dropping and
pruning; transformers 4.57.1 and mlx-lm 0.32.2, each in a virtual environment of its own, then read the folders, and
their logits over 300 tokens and their token ids are compared. Checkpoints named as arguments are read as well.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import torch
import transformers as hf

from sparsedraft.models import checkpoint
from stages import drop_layers, prune
from tiny import build_tokenizer

READERS = {
    "transformers 4.57.1": ["transformers==4.57.1", "torch==2.13.0+cpu"],
    "mlx-lm 0.32.2": ["mlx-lm==0.32.2", "mlx[cpu]==0.32.4"],
}
TEXT = "how many apples<|im_end|>\n<|im_start|>user\n  the Quick brown fox,é 12345"
SAME, ARGMAX = 2e-3, 0.98  # of the largest logit, in float32 by other kernels; of the tokens
SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
BASE = {"rope_theta": 100_000.0}
SCALED = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
}
LONG = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [1.0 + i for i in range(8)]}
LOCAL = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
}
PATTERN = ["sliding_attention", "sliding_attention", "full_attention"] * 2


def models() -> dict[str, hf.PreTrainedConfig]:
    """The models by name."""
    default = {"rope_type": "default", **BASE}
    head = {"head_dim": 16}
    return {
        "llama default": hf.LlamaConfig(**SMALL, rope_parameters=dict(default)),
        **{
            f"llama {kind}": hf.LlamaConfig(**SMALL, rope_parameters={"rope_type": kind, **BASE, **factors})
            for kind, factors in SCALED.items()
        },
        "llama tied": hf.LlamaConfig(**{**SMALL, "tie_word_embeddings": True}, rope_parameters=dict(default)),
        "mistral": hf.MistralConfig(**SMALL, **head, sliding_window=None, rope_parameters=dict(default)),
        "qwen2": hf.Qwen2Config(**SMALL, rope_parameters=dict(default)),
        "qwen3": hf.Qwen3Config(**SMALL, **head, rope_parameters={"rope_type": "yarn", **BASE, **SCALED["yarn"]}),
        "gemma3": hf.Gemma3TextConfig(
            **SMALL,
            **head,
            sliding_window=32,
            layer_types=PATTERN,
            rope_parameters=copy.deepcopy(LOCAL),
            query_pre_attn_scalar=16,
        ),
        "phi3 partial": hf.Phi3Config(**SMALL, rope_parameters={**default, "partial_rotary_factor": 0.75}),
        "phi3 longrope": hf.Phi3Config(
            **SMALL, original_max_position_embeddings=128, rope_parameters={"rope_type": "longrope", **BASE, **LONG}
        ),
        "smollm3": hf.SmolLM3Config(**SMALL, no_rope_layer_interval=3, rope_parameters=dict(default)),
        "gpt-neox": hf.GPTNeoXConfig(
            **{k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "intermediate_size")},
            intermediate_size=256,
            rope_parameters={**default, "partial_rotary_factor": 0.5},
        ),
        "stablelm": hf.StableLmConfig(**SMALL, rope_parameters={**default, "partial_rotary_factor": 0.5}),
    }


def written(root: Path) -> list[Path]:
    """The checkpoints, in `root`."""
    found = []
    for name, config in models().items():
        torch.manual_seed(0)
        folder = root / name.replace(" ", "-")
        checkpoint.save(hf.AutoModelForCausalLM.from_config(config).eval(), build_tokenizer(), folder)
        found.append(folder)
    small = {"tokens": 256, "sequence_length": 64}
    for name in ("llama-llama3", "gemma3", "smollm3"):
        dropped, pruned = root / f"{name}-dropped", root / f"{name}-pruned"
        drop_layers(str(root / name), dropped, "demo:train", layers=3 if name == "gemma3" else 2, **small)
        prune(str(root / name), pruned, "demo:train", pattern="2:4", **small)
        found += [dropped, pruned]
    return found


def expected(folder: Path, logits: Path) -> dict[str, object]:
    """What transformers here makes of the checkpoint; its logits [300, V] go to the file `logits`."""
    model, tokenizer = checkpoint.load(folder), checkpoint.load_tokenizer(folder)
    ids = torch.randint(0, 300, (1, 300), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        np.save(logits, model(ids).logits[0].float().numpy())
    chat = [{"role": "user", "content": "write it again"}]
    return {
        "folder": str(folder),
        "logits": str(logits),
        "ids": ids[0].tolist(),
        "text": tokenizer(TEXT)["input_ids"],
        "chat": tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False),
    }


READ = """
import json, sys, warnings
import numpy as np
warnings.filterwarnings("ignore")
from transformers import AutoTokenizer
reader, text = sys.argv[1], sys.argv[2]
def logits(folder, ids):
    if reader.startswith("mlx"):
        import mlx.core as mx
        from pathlib import Path
        from mlx_lm.utils import load_model
        model, _ = load_model(Path(folder))
        model.set_dtype(mx.float32)
        return np.array(model(mx.array([ids]))[0].astype(mx.float32))
    import torch, transformers
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()
for wanted in json.load(open(sys.argv[3])):
    folder = wanted["folder"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chat = [{"role": "user", "content": "write it again"}]
        chat = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        tokens = (tokenizer(text)["input_ids"], chat) == (wanted["text"], wanted["chat"])
        found, right = logits(folder, wanted["ids"]), np.load(wanted["logits"])
        off = float(np.abs(found - right).max() / np.abs(right).max())
        same = float((found.argmax(-1) == right.argmax(-1)).mean())
        print(json.dumps({"folder": folder, "off": off, "argmax": same, "tokens": tokens}))
    except Exception as error:
        print(json.dumps({"folder": folder, "error": (type(error).__name__ + ": " + str(error))[:160]}))
"""


def python(reader: str, place: Path) -> Path:
    """The interpreter of an environment that has `reader`, made once."""
    folder = place / reader.replace(" ", "-")
    found = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([found, "-m", "pip", "install", "-q", *READERS[reader]], check=True)
        (folder / "ready").touch()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--environments", type=Path, default=Path("build/other-readers"))
    chosen = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as root:
        folders, told = written(Path(root)) + chosen.checkpoints, Path(root) / "expected.json"
        told.write_text(json.dumps([expected(f, Path(root) / f"{i}.npy") for i, f in enumerate(folders)]))
        for reader in READERS:
            command = [python(reader, chosen.environments), "-c", READ, reader, TEXT, told]
            done = subprocess.run(command, capture_output=True, text=True)
            for line in filter(lambda line: line.startswith("{"), done.stdout.splitlines()):
                row = json.loads(line)
                right = row.get("off", 1.0) <= SAME and row["argmax"] >= ARGMAX and row["tokens"]
                wrong += not right
                said = row.get("error") or f"off {row['off']:.1e}, argmax {row['argmax']:.1%}, tokens {row['tokens']}"
                print(f"{'ok   ' if right else 'WRONG'} {reader:20} {Path(row['folder']).name:22} {said}")
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
