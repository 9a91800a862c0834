"""Calls that do without the template's own form: an answer that begins as a JSON object which names a function.

Qwen2.5-Coder answers so, in a fence of Markdown or without, though its template asks for tags. Only the beginning of an
answer counts, up to the arguments: an object that stands elsewhere, or names no function, is text.
"""

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


def rules(names: Sequence[str], fenced: bool, parallel: bool) -> list[str]:
    """llguidance's Lark of `untagged`: a call, or several in `parallel`. The arguments of the i-th function are
    `arguments_i`."""
    kinds = ("bare", "fenced") if fenced else ("bare",)
    found = [f"untagged: ({' | '.join(kinds)}){'+' if parallel else ''} BLANKS", f"BLANKS: /{BLANKS}/"]
    for kind in kinds:
        end = rf"{BLANKS}\}}" + (BLANKS + FENCE_END if kind == "fenced" else "")
        calls = [f"/{head([name], kind == 'fenced')}/ arguments_{i}" for i, name in enumerate(names)]
        found.append(f"{kind}: ({' | '.join(calls)}) /{end}/")
    return found
