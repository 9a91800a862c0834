#!/usr/bin/env bash
# llguidance 1.9.1 with jsonschema 4.26.0 as the judge.
#
# Behaviour: a grammar made of {"type": "string", "format": "date"} takes the 29th of February of every year, and
# refuses the 30th of February and the 31st of April. So it knows how long each month is, but not which years are leap
# years; jsonschema's format checker refuses the day in those that are none. "date-time" does the same.
#
# Guess it refutes: that a format which the engine lists as supported is held, or that it stands for the shape
# NNNN-NN-NN alone. It lies between: what is generated under it looks checked, and one day in four years is not.
#
# Output seen:
#   date 2024-02-29: llguidance takes it, jsonschema takes it
#   date 2023-02-29: llguidance takes it, jsonschema refuses it
#   date 1900-02-29: llguidance takes it, jsonschema refuses it
#   date 2023-02-30: llguidance refuses it, jsonschema refuses it
#   date 2023-04-31: llguidance refuses it, jsonschema refuses it
#   date-time 2023-02-29T10:00:00Z: llguidance takes it, jsonschema refuses it
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "llguidance==1.9.1" "jsonschema==4.26.0" "rfc3339-validator==0.1.4"
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import sys

import jsonschema
import llguidance


class Bytes:
    """A tokenizer of single bytes; token 256 ends a text."""

    eos_token_id, bos_token_id = 256, None
    tokens = [bytes([i]) for i in range(256)] + [b"<end>"]
    special_token_ids = [256]

    def __call__(self, text):
        return [*(text if isinstance(text, bytes) else text.encode())]


tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))
LAST = {"2024-02-29": (True, True), "2023-02-29": (True, False), "1900-02-29": (True, False),
        "2023-02-30": (False, False), "2023-04-31": (False, False)}
ASKED = {("date", day): seen for day, seen in LAST.items()}
ASKED["date-time", "2023-02-29T10:00:00Z"] = (True, False)
words, same = ("refuses it", "takes it"), True
for (kind, text), expected in ASKED.items():
    schema = {"type": "string", "format": kind}
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    instance = json.dumps(text).encode()
    taken = matcher.try_consume_tokens([*instance]) == len(instance) and matcher.is_accepting()
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    valid = checker.is_valid(text)
    print(f"{kind} {text}: llguidance {words[taken]}, jsonschema {words[valid]}", flush=True)
    same = same and (taken, valid) == expected
sys.exit(0 if same else "changed: see above")
PY
