"""Calls of functions in an answer's text, as it is written."""

import uuid
from typing import Any

import regex

from sparsedraft.serve.tools import Calling

BETWEEN = r"[\s}]*(?:</tool_call>|```)?\s*(?:<tool_call>|```(?:json)?)?\s*"
HEAD = regex.compile(BETWEEN + r'\{\s*"name"\s*:\s*"([^"]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class CallReader:
    """Parts the text of one answer, which follows the grammar of `calling`, into what it says and what it calls."""

    def __init__(self, calling: Calling) -> None:
        self.calls = list[dict[str, Any]]()
        tags, text = bool(calling.form.begin), calling.answer is None
        self._anywhere = tags and text  # else at the beginning alone
        self._mark = calling.form.mark if tags or text else ""  # what a call in the template's form begins with
        self._untagged = regex.compile(calling.untagged_head) if calling.untagged_head else None
        self._text, self._at = "", 0  # all of it, and how much has been told
        self._calling, self._arguments = calling.forced, False
        self._depth, self._quoted, self._escaped = 0, False, False

    @property
    def called(self) -> bool:
        """Whether there are calls, the last of them whole."""
        return bool(self.calls) and not self._arguments

    def more(self, text: str, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """(what `text` adds to what is said, what it adds to the calls, in the form of OpenAI's deltas).

        Signs that may begin a call are held back until it is clear, or the `last` text has come.
        """
        self._text += text
        said, deltas = ("", []) if self._calling else (self._said(last), [])
        while self._calling:
            delta = self._more_arguments() if self._arguments else self._head()
            if delta is None:
                break
            deltas.append(delta)
        return said, deltas

    def _said(self, last: bool) -> str:
        """What is said from here on, up to a call."""
        if self._untagged is not None and not self._at:
            begun = self._untagged.match(self._text, partial=True)
            self._calling = begun is not None and not begun.partial
            if self._calling or (begun is not None and not last):
                return ""
        mark, rest = self._mark, self._text[self._at :]
        found = rest.find(mark) if self._anywhere else (0 if mark and self._text.startswith(mark) else -1)
        if found >= 0:
            self._calling = True
            end = found
        elif last:
            end = len(rest)
        elif self._anywhere:
            end = len(rest) - max(n for n in range(len(mark)) if not n or rest.endswith(mark[:n]))
        else:
            end = 0 if mark and mark.startswith(self._text) else len(rest)
        said = rest[:end]
        if not last and self._anywhere:
            said = said.rstrip()  # spaces before a call are none of what is said
        self._at += end if self._calling else len(said)
        return said.rstrip() if self._calling else said

    def _head(self) -> dict[str, Any] | None:
        """The beginning of the next call, once it is whole."""
        found = HEAD.match(self._text, self._at)
        if found is None:
            return None
        self._at, self._arguments = found.end(), True
        self._depth, self._quoted, self._escaped = 0, False, False
        function = {"name": found[1], "arguments": ""}
        call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
        self.calls.append(call)
        return {"index": len(self.calls) - 1, **call, "function": {**function}}

    def _more_arguments(self) -> dict[str, Any] | None:
        """What there is of the arguments of the last call, an object, up to their end."""
        start = self._at
        while self._arguments and self._at < len(self._text):
            sign = self._text[self._at]
            self._at += 1
            if self._quoted:
                self._quoted = self._escaped or sign != '"'
                self._escaped = not self._escaped and sign == "\\"
                continue
            self._quoted = sign == '"'
            self._depth += (sign == "{") - (sign == "}")
            if sign == "}" and not self._depth:
                self._arguments = False
        new = self._text[start : self._at]
        return self._tell(new) if new else None

    def _tell(self, new: str) -> dict[str, Any]:
        self.calls[-1]["function"]["arguments"] += new
        return {"index": len(self.calls) - 1, "function": {"arguments": new}}
