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
from sparsedraft.serve import untagged
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


@dataclass(frozen=True)
class Calling:
    """How one answer may call `functions`, each of which is with the schema of its arguments.

    `forced`: it is calls alone. Else it may be text that calls nothing, or, with a schema as its `answer`, JSON that
    satisfies it; and a call may be `untagged`. In `parallel` there may be several, where the form has room for them.
    """

    form: CallForm
    functions: Sequence[tuple[Function, Any]]
    forced: bool = False
    parallel: bool = True
    answer: Any = None
    untagged: bool = True

    @property
    def untagged_head(self) -> str:
        """What an answer begins with that calls without the form, as a regular expression; "": none may. A fence is
        what some models put JSON in: where that is asked for, it is no sign of a call."""
        return untagged.heads(self.names, self.answer is None) if self.untagged and not self.forced else ""

    @property
    def names(self) -> list[str]:
        """Of the functions."""
        return [function.name for function, _ in self.functions]


def grammar(calling: Calling) -> str:
    """llguidance's Lark of an answer. What has begun a call is one."""
    form, found = calling.form, _calls(calling)
    begin = f"{json.dumps(form.begin)} " if form.begin else ""
    more = f" ({json.dumps(chr(10) + form.begin)} call)*" if begin and calling.parallel else ""
    start = [f"{begin}call{more}"]
    if calling.answer is not None and not calling.forced:
        start = [*(start if begin else ()), "answer"]
        found.append(f"answer: %json {json.dumps(calling.answer)}")
    elif not calling.forced:
        start = [f"{'ahead ' if begin else ''}call{more}", "TEXT"]
        found += _texts(calling)
    if calling.untagged_head:
        start.append("untagged")
        rules = untagged.rules if calling.answer is None else untagged.rules_beside_json
        found += rules(calling.names)
    return "\n".join([f"start: {' | '.join(start)}", *found])


def _calls(calling: Calling) -> list[str]:
    """The rules of `call`, and of each function's call and its arguments."""
    found = [f"call: {' | '.join(f'call_{i}' for i in range(len(calling.functions)))}"]
    for i, (function, schema) in enumerate(calling.functions):
        head, end = json.dumps(calling.form.head(function.name)), json.dumps("}" + calling.form.end)
        found += [f"call_{i}: {head} arguments_{i} {end}", f"arguments_{i}: %json {json.dumps(schema)}"]
    return found


def _texts(calling: Calling) -> list[str]:
    """The rules of `TEXT`, which calls nothing, and of `ahead`, a text up to a call, where it may stand behind one."""
    form, mark = calling.form, re.escape(calling.form.mark)
    others = f" & ~/{calling.untagged_head}(?s:.*)/" if calling.untagged_head else ""
    if not form.begin:
        return [rf"TEXT: /(?s:.*)/ & ~/{mark}(?s:.*)/{others}"]
    ahead = re.escape(form.begin).replace("\\\n", "\\n")
    return [rf"ahead[lazy]: /(?s:.*){ahead}/{others}", rf"TEXT: /(?s:.*)/ & ~/(?s:.*){mark}(?s:.*)/{others}"]
