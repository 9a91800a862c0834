"""Patterns of ECMA-262 as an engine reads them that takes Rust's: the same strings, or a refusal."""

import asyncio
import json

import pytest

from sparsedraft.serve import patterns, schemas
from sparsedraft.serve.grammar import Grammars, Unmade
from tiny import build_tokenizer

TOKENIZER = build_tokenizer()
GRAMMARS = Grammars(TOKENIZER, 320, frozenset([2]))

# a pattern, strings that have it somewhere, and strings that have not
MEANT = [
    ("^.$", ["a", "é", "\t"], ["\n", "\r", "", "ab"]),
    (r"^\d$", ["1"], ["٣", "a"]),
    (r"^\w$", ["a", "_"], ["é", "-"]),
    (r"^\W$", ["é", "-"], ["a"]),
    (r"^\s$", [" ", "\t", "\u00a0", "\ufeff"], ["a", "\u0085"]),
    (r"^\S$", ["a", "\u0085"], [" ", "\u3000"]),
    (r"^[\w.-]+$", ["a.b-c"], ["a b"]),
    (r"^[^\d\s]$", ["a"], ["1", " "]),
    (r"^[\D]$", ["a"], ["1"]),
    ("^[a&&b]+$", ["&", "a&b"], ["c"]),
    ("^[[]$", ["["], ["a"]),
    ("^[a-c-]+$", ["a-b"], ["d"]),
    (r"^\<\>\/\-$", ["<>/-"], ["a"]),
    (r"^\x41\u0042\u{43}$", ["ABC"], ["abc"]),
    ("^(?:ab|c)+$", ["abc"], ["ac"]),
    ("^a{2,3}$", ["aa", "aaa"], ["a", "aaaa"]),
    ("^a+?$", ["aa"], ["b"]),
    ("#~@ %", ["x#~@ %"], ["#~@%"]),
    (r"^\p{L}+$", ["aé"], ["1"]),
    (r"^[\p{Lu}0]$", ["A", "0"], ["a"]),
    ('"', ['a"b'], ["a"]),
    (r"\\", ["a\\b"], ["a"]),
    (r"^\.$", ["."], ["a"]),
]
UNKNOWN = [
    r"\bfoo", r"\Aa", r"a\z", r"\1", r"\k<a>", r"\a", "(?=a)", "(?!a)", "(?<=a)", "(?i)a", "(?P<n>a)", "(?<n>a)",
    "a{,3}", "a{", "]", "}", "[]", "[^]", "[z-a]", r"[\w-z]", "[a", "a\\", r"\u12", r"\ud83d", "a" * 1001, r"\pL",
    r"\x{41}",
]  # fmt: skip


def accepted(pattern: str, value: str) -> bool:
    schema = schemas.prepared({"type": "string", "pattern": pattern}, "schema")
    follow, path = asyncio.run(GRAMMARS.make(f"start: %json {json.dumps(schema)}"))(), list[int]()
    for token in TOKENIZER(json.dumps(value, ensure_ascii=False))["input_ids"]:
        mask = follow.allowed(path)
        if mask is None or not mask[token]:
            return False
        path.append(token)
    mask = follow.allowed(path)
    return mask is not None and bool(mask[2])


@pytest.mark.parametrize(("pattern", "good", "bad"), MEANT, ids=lambda value: repr(value)[:20])
def test_a_pattern_means_what_ecma_says(pattern: str, good: list[str], bad: list[str]) -> None:
    assert all(accepted(pattern, value) for value in good)
    assert not any(accepted(pattern, value) for value in bad)


@pytest.mark.parametrize("pattern", UNKNOWN, ids=lambda value: value[:10])
def test_what_is_not_known_is_refused(pattern: str) -> None:
    with pytest.raises(patterns.Unknown):
        patterns.rust(pattern)


@pytest.mark.parametrize("pattern", ["(", "a)", "*a", "a{3,2}"])
def test_what_is_no_pattern_is_refused_by_the_engine(pattern: str) -> None:
    with pytest.raises(Unmade):
        accepted(pattern, "a")
