"""Regular expressions of JSON Schema, which are ECMA-262's, for an engine that reads Rust's.

The two spell some things alike and mean others by them: `[a&&b]`, `\\<`, `\\A`, `.` before a carriage return. So a
pattern is read here, sign by sign, and written again in what has one meaning; what is not known is refused.
"""

import re
from dataclasses import dataclass

SPACES = r"\x{9}-\x{d}\x{20}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}"
SETS = {"d": "0-9", "w": "0-9A-Z_a-z", "s": SPACES}
DOT = r"[^\x{a}\x{d}\x{2028}\x{2029}]"
CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11}
COUNT = re.compile(r"\{(\d{1,4})(,(\d{0,4}))?\}")
HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}")
PROPERTY = re.compile(r"[pP]\{[A-Za-z_]+(=[A-Za-z_]+)?\}")
LONGEST = 1000  # characters of a pattern


class Unknown(ValueError):
    """A pattern with something that is not known here, or that no grammar can hold; the message names it."""


@dataclass
class _Reader:
    text: str
    at: int = 0

    def take(self, what: re.Pattern[str]) -> re.Match[str] | None:
        """The match of `what` here, which is then behind us."""
        found = what.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return found

    def next(self) -> str:
        """The sign here, which is then behind us."""
        if self.at >= len(self.text):
            raise Unknown("it ends too early")
        self.at += 1
        return self.text[self.at - 1]

    @property
    def more(self) -> str:
        """What is still to be read."""
        return self.text[self.at :]


def rust(pattern: str) -> str:
    """The same pattern in Rust's syntax, to be searched for as ECMA-262 does with the flag u. Raises Unknown."""
    if len(pattern) > LONGEST:
        raise Unknown(f"it has more than {LONGEST} characters")
    reader, written = _Reader(pattern), []
    while reader.more:
        written.append(_part(reader))
    return "".join(written)


def _part(reader: _Reader) -> str:
    sign = reader.next()
    if sign == "\\":
        return _escape(reader)
    if sign == "[":
        return _class(reader)
    if sign == ".":
        return DOT
    if sign == "(":
        if not reader.more.startswith("?"):
            return "("
        if reader.more.startswith("?:"):
            reader.at += 2
            return "(?:"
        raise Unknown(f"groups that begin with ({reader.more[:2]} are not")
    if sign == "{":
        reader.at -= 1
        found = reader.take(COUNT)
        if not found:
            raise Unknown("a { that counts nothing is not")
        return found[0]
    if sign in "]}":
        raise Unknown(f"a {sign} that closes nothing is not")
    return sign if sign in "^$*+?|)" else _letter(ord(sign))


def _escape(reader: _Reader) -> str:
    """What stands behind a backslash outside of a class."""
    sign = reader.more[:1]
    if sign.lower() in SETS and sign:
        reader.at += 1
        return f"[{'^' if sign.isupper() else ''}{SETS[sign.lower()]}]"
    if found := reader.take(PROPERTY):
        return f"\\{found[0]}"
    return _letter(_code(reader))


def _code(reader: _Reader) -> int:
    """The code point of an escaped sign."""
    if found := reader.take(HEX):
        code = int(found[1] or found[2] or found[3], 16)
        if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            raise Unknown(f"\\{found[0]} is no character, and")
        return code
    sign = reader.next()
    if sign in CONTROLS:
        return CONTROLS[sign]
    if sign.isalnum() or sign == "_":
        raise Unknown(f"\\{sign} is not")
    return ord(sign)


def _class(reader: _Reader) -> str:
    """A class in square brackets, whose first one is behind us."""
    negated, parts = reader.more.startswith("^"), list[str]()
    reader.at += negated
    while (sign := reader.next()) != "]":
        first = _atom(reader, sign)
        if not reader.more.startswith("-") or reader.more.startswith("-]"):
            parts.append(first if isinstance(first, str) else _letter(first))
            continue
        reader.at += 1
        last = _atom(reader, reader.next())
        if isinstance(first, str) or isinstance(last, str) or first > last:
            raise Unknown("a range of a class that goes from no sign, to none, or backwards, is not")
        parts.append(f"{_letter(first)}-{_letter(last)}")
    if not parts:
        raise Unknown("an empty class is not")
    return f"[{'^' if negated else ''}{''.join(parts)}]"


def _atom(reader: _Reader, sign: str) -> str | int:
    """A part of a class: the code point of a sign, or a set as a class takes it."""
    if sign != "\\":
        return ord(sign)
    name = reader.more[:1]
    if name and name.lower() in SETS:
        reader.at += 1
        return SETS[name] if name.islower() else f"[^{SETS[name.lower()]}]"
    if found := reader.take(PROPERTY):
        return f"\\{found[0]}"
    return _code(reader)


def _letter(code: int) -> str:
    """A sign that means itself, in a class and outside."""
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else f"\\x{{{code:x}}}"
