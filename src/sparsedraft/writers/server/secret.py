"""Secrets in keys and addresses of servers: they go to the server, and are never shown or stored."""

import html
import json
import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from sparsedraft.base.errors import UserError

HIDDEN = "…"
WORD = 4  # characters: a secret this long is hidden anywhere in a text, a shorter one only as a whole word


def read_key() -> str:
    """The server's key, OPENAI_API_KEY, without spaces around it; "" if it is not set.

    UserError, without the key in it, for a key that no HTTP header can carry.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            "OPENAI_API_KEY holds a line break or another character that no HTTP header can carry: copy the key again."
        )
    return key


def shown(url: str) -> str:
    """`url` without the user's name and password, the query and the fragment.

    In a malformed address an @ after the host may be the end of a password: then only the scheme is left.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme, rest = "", url
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in rest[len(authority) :]:
        return f"{scheme}{mark}{HIDDEN}"
    return scheme + mark + re.split(r"[?#]", rest, maxsplit=1)[0].rpartition("@")[2]


def secrets_of(*urls: str) -> list[str]:
    """The secrets in addresses: name, password, and the values of the query."""
    words: list[str | None] = []
    for url in urls:
        parts = urlsplit(url)
        words += [parts.username, parts.password, *(value for _, value in parse_qsl(parts.query))]
    return [word for word in words if word]


class Secrets:
    """Words that must not be shown, neither plain nor escaped as in JSON, HTML or an address."""

    def __init__(self, words: Iterable[str]) -> None:
        forms = {form for word in words for form in _forms(word)}
        self.longest = max((len(form) for form in forms), default=0)
        ordered = sorted(forms, key=lambda form: (-len(form), form))  # the longest first: one may hold another
        pattern = "|".join(re.escape(f) if len(f) >= WORD else rf"(?<!\w){re.escape(f)}(?!\w)" for f in ordered)
        self._pattern = re.compile(pattern, re.IGNORECASE) if pattern else None

    def hide(self, text: str) -> str:
        """`text` with every secret replaced by a mark."""
        return self._pattern.sub(HIDDEN, text) if self._pattern else text

    def line(self, text: str, most: int = 200) -> str:
        """Foreign text as one line that can be shown: no secrets, no control characters, at most `most` long."""
        plain = "".join(c if c.isprintable() else " " for c in self.hide(text))
        return self.hide(" ".join(plain.split()))[:most]


def _forms(word: str) -> Iterator[str]:
    for plain in {word, unquote(word), " ".join(word.split())}:
        yield from (plain, json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1], repr(plain)[1:-1])
        yield from (html.escape(plain), quote(plain), quote(plain, safe=""), quote_plus(plain))
