"""Keys and addresses of servers: what is secret in them goes to the server, and is shown and stored nowhere."""

import html
import json
import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from sparsedraft.base.errors import UserError

HIDDEN = "…"
WORD = 4  # characters from which on a secret is hidden wherever it occurs: a shorter one only where it is a whole word


def read_key() -> str:
    """The server's key, OPENAI_API_KEY, without the space around it; "" where none is set.

    UserError, which does not show it, for one that no HTTP header can carry.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            "OPENAI_API_KEY holds a line break or another character that no HTTP header can carry: copy the key again."
        )
    return key


def shown(url: str) -> str:
    """`url` as it may be shown: without the user's name and password, the query and the fragment.

    It need not be a well-formed one, so an @ behind the host may as well be a password's end: then little is left.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme, rest = "", url
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in rest[len(authority) :]:
        return f"{scheme}{mark}{HIDDEN}"
    return scheme + mark + re.split(r"[?#]", rest, maxsplit=1)[0].rpartition("@")[2]


def secrets_of(*urls: str) -> list[str]:
    """What is secret in addresses: name, password, and the values of the query."""
    found: list[str | None] = []
    for url in urls:
        parts = urlsplit(url)
        found += [parts.username, parts.password, *(value for _, value in parse_qsl(parts.query))]
    return [word for word in found if word]


class Secrets:
    """Words that must not be shown, however they are spelt: as they are, or escaped as in JSON, HTML or an address."""

    def __init__(self, words: Iterable[str]) -> None:
        forms = {form for word in words for form in _forms(word)}
        self.longest = max((len(form) for form in forms), default=0)
        ordered = sorted(forms, key=lambda form: (-len(form), form))  # the longest first: one may hold another
        found = "|".join(re.escape(f) if len(f) >= WORD else rf"(?<!\w){re.escape(f)}(?!\w)" for f in ordered)
        self._pattern = re.compile(found, re.IGNORECASE) if found else None

    def hide(self, text: str) -> str:
        """`text` with a mark in the place of every secret."""
        return self._pattern.sub(HIDDEN, text) if self._pattern else text

    def line(self, text: str, most: int = 200) -> str:
        """What somebody else said, in one line that can be shown: no secret, no control character, not long."""
        plain = "".join(c if c.isprintable() else " " for c in self.hide(text))
        return self.hide(" ".join(plain.split()))[:most]


def _forms(word: str) -> Iterator[str]:
    for plain in {word, unquote(word), " ".join(word.split())}:
        yield from (plain, json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1], repr(plain)[1:-1])
        yield from (html.escape(plain), quote(plain), quote(plain, safe=""), quote_plus(plain))
