#!/usr/bin/env bash
# transformers 5.24.0 (jinja2 3.1.6): chat templates do not see what was passed to them.
#
# Every value that `apply_chat_template` hands to the template, keyword arguments and message contents alike, is rebuilt
# out of plain JSON types first; what is none (a date, a Decimal, a Path, a function) is replaced with a text that names
# its type. No error, no warning: the prompt that the model reads says "<date>". In 4.57.1 the same call renders the
# value itself, and a function given as `strftime_now`, by which one could pin the day for templates that ask the clock,
# takes the place of the built-in one; in 5.24.0 that template fails with a TypeError about a str.
#
# The guess it refutes: a keyword argument reaches the template as it is, so `date_string=date.today()` renders as
# "2024-07-26", as jinja renders any object by its str().
#
# Seen: 4.57.1: "Today: 2024-07-26|1.5" and "2024"; 5.24.0: "Today: <date>|<Decimal>" and
# "TypeError: 'str' object is not callable".
#
# (sparsedraft therefore sets strftime_now in the environment of the compiled template, and takes JSON values alone.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/show.py" <<'PYTHON'
from datetime import date
from decimal import Decimal

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
tokenizer.chat_template = "Today: {{ day }}|{{ messages[0].content }}"
chat = [{"role": "user", "content": Decimal("1.5")}]
print(tokenizer.apply_chat_template(chat, tokenize=False, day=date(2024, 7, 26)))
tokenizer.chat_template = "{{ strftime_now('%Y') }}"
try:
    print(tokenizer.apply_chat_template(chat, tokenize=False, strftime_now=lambda form: "2024"))
except TypeError as error:
    print(f"TypeError: {error}")
PYTHON
for version in 4.57.1 5.24.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install -q "transformers==$version" jinja2==3.1.6
    "$work/$version/bin/python" "$work/show.py" 2> /dev/null > "$work/$version.txt"
    echo "transformers $version:" && sed 's/^/    /' "$work/$version.txt"
done
printf 'Today: 2024-07-26|1.5\n2024\n' | diff - "$work/4.57.1.txt"
printf "Today: <date>|<Decimal>\nTypeError: 'str' object is not callable\n" | diff - "$work/5.24.0.txt"
