"""Chat templates that show tools, each in its own form, and a tiny model that has learnt to call one."""

from pathlib import Path
from typing import Any

import torch

from sparsedraft.models.tokenizers import templates
from tiny import build_llama, build_tokenizer

TOOLS_SHOWN = (
    "{% if tools %}<|im_start|>system\n"
    "{% for t in tools %}{{ t.function | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
)  # fmt: skip
BEGIN, END = "<|im_start|>{{ m.role }}\n{{ m.content }}", "<|im_end|>\n"
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def _template(call: str) -> str:
    calls = f"{{% for c in m.tool_calls or [] %}}{call}{{% endfor %}}" if call else ""
    return f"{TOOLS_SHOWN}{{% for m in messages %}}{BEGIN}{calls}{END}{{% endfor %}}{ASKS}"


def _object(key: str) -> str:
    return f'{{{{ \'{{"name": "\' }}}}{{{{ c.function.name }}}}", "{key}": {{{{ c.function.arguments | tojson }}}}}}'


TAGGED = _template("\n<tool_call>\n" + _object("arguments") + "\n</tool_call>")
BARE = _template(_object("parameters"))
PLAIN = _template("")
OTHER = _template("<tool_call>{{ c.function.name }}({{ c.function.arguments | tojson }})</tool_call>")

PLACE = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["place"],
    "additionalProperties": False,
}
LOOK: dict[str, Any] = {"type": "function", "function": {"name": "look", "parameters": PLACE}}
WAIT: dict[str, Any] = {"type": "function", "function": {"name": "wait"}}
ASKED = [{"role": "user", "content": "the quick fox?"}]
CALLED = {"id": "a", "type": "function", "function": {"name": "look", "arguments": {"place": "fox"}}}


FENCED = '```json\n{\n  "name": "look",\n  "arguments": {\n    "place": "fox"\n  }\n}\n```'


def build_caller(folder: Path, fenced: bool = False) -> Path:
    """A checkpoint that answers ASKED with a word and a call of LOOK where LOOK is shown, and another text without.

    `fenced`: with FENCED where LOOK is shown, though its template has tags.
    """
    model, tokenizer = (
        build_llama(seed=1, layers=2, initializer_range=0.05, max_position_embeddings=2048),
        build_tokenizer(),
    )
    tokenizer.chat_template = TAGGED
    tool = {"type": "function", "function": {"name": "look", "description": "", "parameters": PLACE}}
    calls = {"role": "assistant", "content": "a dog", "tool_calls": [CALLED]}
    if fenced:
        calls = {"role": "assistant", "content": FENCED}
    says = {"role": "assistant", "content": "seven apples are left."}
    rows = [
        torch.tensor([templates.chat_ids(tokenizer, [*ASKED, calls], generation_prompt=False, tools=[tool])]),
        torch.tensor([templates.chat_ids(tokenizer, [*ASKED, says], generation_prompt=False)]),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        ids = rows[step % 2]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
