"""The known forms of conversations in data sets, read as one: a list of system, user and assistant messages."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sparsedraft.base.errors import UserError

FORMS = "'prompt', 'messages', 'conversations', 'turns', 'chosen' or 'instruction'"
ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model"), "assistant"),  # ShareGPT's names
}
TOOLS = ("tool", "function", "function_call", "observation", "ipython")  # roles of messages to and from tools
TEXT = ("text", "input_text", "output_text")  # types of a part of a content that is text
OWN = {  # fields that would change what the target reads, in this row only
    "tools": "takes no tools: leave out the row, or the field where nothing uses it",
    "functions": "takes no tools: leave out the row, or the field where nothing uses it",
    "chat_template_kwargs": "takes the same for all rows: leave the field out, and give --template-arg name=value",
}


class Message(NamedTuple):
    """A message of the system, user or assistant; its text is None if it is empty."""

    role: str
    text: str | None


def chat_of(row: Mapping[str, Any], where: str) -> list[Message]:
    """The conversation in one row of a file, in any of the known forms; `where` names the row in errors.

    `turns`: the user's messages. `messages`, `conversations`: role and content, or ShareGPT's from and value. `prompt`:
    text, or such messages, with an answer in `completion` or, of two, in `chosen`; `chosen` alone is a conversation.
    `instruction`, with `input`, `output` and `history`. A `system` beside them stands before all. UserError for a row
    of another form, and for what is no text.
    """
    for field, mend in OWN.items():
        if not _empty(row.get(field)):
            raise UserError(f"prompts {where}: has '{field}' of its own, and sparsedraft {mend}.")
    chat = _said(row, where)
    if not chat:
        raise UserError(f"prompts {where}: has none of {FORMS}, or it is empty.")
    system = row.get("system")
    if not _empty(system):
        first = Message("system", _text(system, f"{where}: the system message"))
        chat = chat if chat[0] == first else [first, *chat]
    return chat


def _said(row: Mapping[str, Any], where: str) -> list[Message]:
    turns, answer = _list(row, "turns", where), _answer(row, where)
    if turns:
        return [Message("user", _text(turn, f"{where}: a turn")) for turn in turns]
    for key in ("messages", "conversations", "conversation"):
        if found := _list(row, key, where):
            return [_message(message, where) for message in found]
    prompt = row.get("prompt")
    if isinstance(prompt, list | tuple) and prompt:
        return [*(_message(message, where) for message in prompt), *answer]
    if prompt:
        return [Message("user", _text(prompt, f"{where}: a turn")), *answer]
    if not _empty(row.get("chosen")):
        return [_message(message, where) for message in _list(row, "chosen", where)]
    if row.get("instruction"):
        return _alpaca(row, where)
    return []


def _answer(row: Mapping[str, Any], where: str) -> list[Message]:
    """The answer beside a row's `prompt`: the better one of a pair; [] if there is none, or it is marked as bad."""
    for key in ("completion", "chosen"):
        answer = row.get(key)
        if _empty(answer) or (key == "completion" and row.get("label") is False):
            continue
        if isinstance(answer, list | tuple):  # messages; some data sets repeat the prompt's
            answer = next((said.text for said in reversed([_message(m, where) for m in answer])), None)
        return [Message("assistant", _text(answer, f"{where}: the {key}"))]
    return []


def _alpaca(row: Mapping[str, Any], where: str) -> list[Message]:
    chat = []
    for pair in _list(row, "history", where):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UserError(f"prompts {where}: 'history' holds something else than pairs of instruction and answer.")
        question, answer = (_text(text, f"{where}: 'history'") for text in pair)
        chat += [Message("user", question), Message("assistant", answer)]
    parts = (
        str(row[key]) if isinstance(row.get(key), int | float) else row.get(key) for key in ("instruction", "input")
    )
    question = "\n\n".join(_text(part, f"{where}: the instruction") for part in parts if part)
    chat.append(Message("user", question))
    if row.get("output") not in (None, ""):
        chat.append(Message("assistant", _text(row["output"], f"{where}: the output message")))
    return chat


def _message(message: Any, where: str) -> Message:
    """One message in OpenAI's form (role, content) or ShareGPT's (from, value)."""
    if not isinstance(message, Mapping):
        raise UserError(f"prompts {where}: a message is not an object with role and content.")
    role_name = message.get("role") if message.get("role") is not None else message.get("from")
    if role_name in TOOLS or not _empty(message.get("tool_calls")) or not _empty(message.get("function_call")):
        raise UserError(f"prompts {where}: role '{role_name}' with tools is not supported: leave out the row.")
    role = ROLES.get(role_name) if isinstance(role_name, str) else None
    if role is None:
        raise UserError(f"prompts {where}: role '{role_name}' is not system, user or assistant.")
    content = message.get("content") if message.get("content") is not None else message.get("value")
    return Message(role, None if content is None else _text(content, f"{where}: the {role_name} message"))


def _text(content: Any, what: str) -> str:
    """A message's content as text; a list of parts becomes one line each, as servers join them for text templates."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise UserError(f"prompts {what} is {type(content).__name__}, not text.")
    return "\n".join(_part(part, what) for part in content)


def _part(part: Any, what: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise UserError(f"prompts {what} has a part that is {type(part).__name__}, not text.")
    kind, text = part.get("type"), part.get("text")
    if (kind is not None and kind not in TEXT) or not isinstance(text, str):
        raise UserError(f"prompts {what} has a part of type '{kind}', and sparsedraft reads text alone: take it out.")
    return text


def _list(row: Mapping[str, Any], key: str, where: str) -> Sequence[Any]:
    items = row.get(key)
    if items is not None and not isinstance(items, list | tuple):
        raise UserError(f"prompts {where}: '{key}' is {type(items).__name__}, not a list.")
    return items or ()


def _empty(value: Any) -> bool:
    """Whether a field is empty, as tables write it: null, "", [], {}, or an object of nulls."""
    if isinstance(value, Mapping):
        return all(_empty(item) for item in value.values())
    return value is None or value in ("", "[]", "{}") or (isinstance(value, list | tuple) and not value)
