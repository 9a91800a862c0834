"""How a model calls functions: the form that its chat template shows, as a grammar.

Which form that is, the template is asked: it renders a call, and the text around that call is looked at. Three are
known: Hermes' and Qwen's (a JSON object in tags), Llama 3's (the answer is the object, with "parameters"), and, where
the template shows tools and no calls, a plain object with "arguments".
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sparsedraft.models.tokenizers import templates
from sparsedraft.serve.structure import NO_PARAMETERS, Function

PROBE = "probe_of_the_template"
TOOL = {"type": "function", "function": {"name": PROBE, "description": "A probe.", "parameters": NO_PARAMETERS}}
CALL = {"id": "call_0", "type": "function", "function": {"name": PROBE, "arguments": {"place": "here"}}}
RENDERED = re.compile(rf'\{{"name": "{PROBE}", "(arguments|parameters)": \{{"place": "here"\}}\}}')
OPEN, CLOSE = re.compile(r"<tool_call>\s*\Z"), re.compile(r"\s*</tool_call>")
ASKED = [{"role": "user", "content": "Hello"}]


class Unshown(ValueError):
    """The template cannot do with tools; the message is what it cannot do, for a sentence about it."""


@dataclass(frozen=True)
class CallForm:
    """A call is `begin` {"name": ..., `key`: ...} `end`. Without `begin` the whole answer is one call."""

    begin: str
    key: str
    end: str

    @property
    def mark(self) -> str:
        """What no text contains that calls nothing; without `begin`, what none begins with."""
        return self.begin.rstrip() or '{"name": "'

    def head(self, name: str) -> str:
        """What stands before the arguments."""
        return f'{{"name": "{name}", "{self.key}": '


def form_of(tokenizer: PreTrainedTokenizerBase) -> CallForm:
    """The form of the model's calls. Unshown where its template shows no tools, or calls in another form; UserError
    where there is no template."""
    try:
        shown = templates.render(tokenizer, ASKED, generation_prompt=True, tools=[TOOL])
    except TemplateError:
        shown = ""
    if PROBE not in shown:
        raise Unshown("shows no tools")
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    try:
        text = templates.render(tokenizer, [*ASKED, called], tools=[TOOL])
    except TemplateError:
        return CallForm("", "arguments", "")
    if text.count(PROBE) == shown.count(PROBE):
        return CallForm("", "arguments", "")
    found = RENDERED.search(text)
    before, behind = (text[: found.start()], text[found.end() :]) if found else ("", "")
    opened, closed = OPEN.search(before), CLOSE.match(behind)
    if found and opened and closed:
        return CallForm(opened[0], found[1], closed[0])
    if found and before.rstrip() == shown.rstrip():
        return CallForm("", found[1], "")
    raise Unshown("writes calls in a form that is not known here")


def check_history(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> None:
    """Unshown where the messages hold calls that the template would leave out."""
    if any("tool_calls" in message for message in messages) and "tool_calls" not in str(tokenizer.chat_template):
        raise Unshown("shows no calls")


def grammar(form: CallForm, functions: Sequence[tuple[Function, Any]], forced: bool, parallel: bool) -> str:
    """llguidance's Lark of an answer that calls one of `functions`, each with its schema, or several where the form has
    room for them and they may run in `parallel`; not `forced`, any text may come before, or in place of calls."""
    rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(functions)))}"]
    for i, (function, schema) in enumerate(functions):
        head, end = json.dumps(form.head(function.name)), json.dumps("}" + form.end)
        rules += [f"call_{i}: {head} arguments_{i} {end}", f"arguments_{i}: %json {json.dumps(schema)}"]
    more = f" ({json.dumps(chr(10) + form.begin)} call)*" if form.begin and parallel else ""
    begin = f"{json.dumps(form.begin)} " if form.begin else ""
    if forced:
        return "\n".join([f"start: {begin}call{more}", *rules])
    mark = re.escape(form.mark)
    if not form.begin:
        return "\n".join([f"start: TEXT | call{more}", *rules, rf"TEXT: /(?s:.*)/ & ~/{mark}(?s:.*)/"])
    ahead = re.escape(form.begin).replace("\\\n", "\\n")
    lazy = [rf"ahead[lazy]: /(?s:.*){ahead}/", rf"TEXT: /(?s:.*)/ & ~/(?s:.*){mark}(?s:.*)/"]
    return "\n".join([f"start: TEXT | ahead call{more}", *rules, *lazy])
