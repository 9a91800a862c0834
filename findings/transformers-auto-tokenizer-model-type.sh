#!/usr/bin/env bash
# transformers 5.24.0 with tokenizers 0.23.3.
#
# Behaviour: for a checkpoint whose config.json says model_type "qwen2", AutoTokenizer makes a Qwen2Tokenizer, even where
# tokenizer_config.json names PreTrainedTokenizerFast and tokenizer.json holds everything. That class builds its own
# normalizer (NFC) and its own way of splitting text, and drops those of the file; it also appends a token that the file
# lacks, one id beyond the vocabulary. The same folder read by PreTrainedTokenizerFast splits as the file says.
#
# Guess it refutes: that tokenizer.json is the whole tokenizer, so AutoTokenizer gives the ids of tokenizers.Tokenizer.
#
# Output seen:
#   tokenizer.json alone:     ['e', 'Ì', 'ģ', 'ĠĠ', '12'] normalizer None size 259
#   PreTrainedTokenizerFast:  ['e', 'Ì', 'ģ', 'ĠĠ', '12'] normalizer None size 259 TokenizersBackend
#   AutoTokenizer:            ['Ã', '©', 'Ġ', 'Ġ', '1', '2'] normalizer NFC() size 260 Qwen2Tokenizer
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0" "tokenizers==0.23.3"
"$folder/venv/bin/python" - "$folder/model" <<'PY'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEXT = "e\u0301  12"  # an accent of its own, two spaces, two digits
folder = Path(sys.argv[1])
folder.mkdir()
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {letter: number for number, letter in enumerate(letters)}
vocabulary |= {"ĠĠ": len(vocabulary), "12": len(vocabulary) + 1, "<end>": len(vocabulary) + 2}
file = Tokenizer(models.BPE(vocabulary, [("Ġ", "Ġ"), ("1", "2")]))
file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # no split at all
file.decoder = decoders.ByteLevel()
file.add_special_tokens(["<end>"])
file.save(str(folder / "tokenizer.json"))
(folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": len(vocabulary)}))
settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
(folder / "tokenizer_config.json").write_text(json.dumps(settings))

expected = file.encode(TEXT).tokens
plain = PreTrainedTokenizerFast.from_pretrained(folder)
auto = AutoTokenizer.from_pretrained(folder)
print("tokenizer.json alone:    ", expected, "normalizer", file.normalizer, "size", file.get_vocab_size())
for name, found in (("PreTrainedTokenizerFast: ", plain), ("AutoTokenizer:           ", auto)):
    print(name, found.tokenize(TEXT), "normalizer", found.backend_tokenizer.normalizer, "size", len(found), type(found).__name__)
same = plain.tokenize(TEXT) == expected and plain.backend_tokenizer.normalizer is None
replaced = type(auto).__name__ == "Qwen2Tokenizer" and auto.tokenize(TEXT) != expected
sys.exit(0 if same and replaced and len(auto) == file.get_vocab_size() + 1 else "changed: see above")
PY
