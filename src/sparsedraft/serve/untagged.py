"""Calls that do without the template's own form: an answer that begins as a JSON object which names a function.

Qwen2.5-Coder answers so, in a fence of Markdown or without, though its template asks for tags. Only the beginning of an
answer counts, up to the arguments: an object that stands elsewhere, or names no function, is text. Behind the object
the answer ends. A model that would explain itself there, and may not, calls again and again where it may.
"""

import json
from collections.abc import Sequence

BLANKS = r"[ \n\t]{0,16}"
FENCE, FENCE_END = rf"```(json)?[ \n\t]{BLANKS}", "```"


def head(names: Sequence[str], fenced: bool) -> str:
    """What stands before the arguments of a call of one of these functions, as a regular expression."""
    signs = (r"\{", r'"name"', ":", f'"({"|".join(names)})"', ",", '"(arguments|parameters)"', ":", "")
    return BLANKS + (FENCE if fenced else "") + BLANKS.join(signs)


def heads(names: Sequence[str], fenced: bool) -> str:
    """The same with a fence or without; `fenced` False: without alone."""
    bare = head(names, fenced=False)
    return f"({bare}|{head(names, fenced=True)})" if fenced else bare


def rules(names: Sequence[str]) -> list[str]:
    """llguidance's Lark of `untagged`: one call in place of a text. The arguments of the i-th function are
    `arguments_i`."""
    found = ["untagged: (bare | fenced) BLANKS", f"BLANKS: /{BLANKS}/"]
    for kind in ("bare", "fenced"):
        end = rf"{BLANKS}\}}" + (BLANKS + FENCE_END if kind == "fenced" else "")
        calls = [f"/{head([name], kind == 'fenced')}/ arguments_{i}" for i, name in enumerate(names)]
        found.append(f"{kind}: ({' | '.join(calls)}) /{end}/")
    return found


def rules_beside_json(names: Sequence[str]) -> list[str]:
    """The same in place of JSON: without a fence. Its signs are apart, as those of JSON are: the engine takes
    the longest that it can read, and that would always be the beginning of a call. Nothing is ahead of the object, as
    nothing is ahead of JSON: a blank there would leave the answer nothing but the call."""
    calls = [f"{_sign(json.dumps(name))} {_sign(',')} key {_sign(':')} arguments_{i}" for i, name in enumerate(names)]
    begin = f"{_sign('{')} {_sign(json.dumps('name'))} {_sign(':')}"
    return [
        f'untagged: {begin} ({" | ".join(calls)}) BLANKS "}}" BLANKS',
        f"key: {_sign(json.dumps('arguments'))} | {_sign(json.dumps('parameters'))}",
        f"BLANKS: /{BLANKS}/",
    ]


def _sign(text: str) -> str:
    return f"{json.dumps(text)} BLANKS"
