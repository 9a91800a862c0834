"""Every keyword of JSON Schema is either held, by what jsonschema judges, or refused in one sentence that names it."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from functools import cache
from typing import Any

import jsonschema
import pytest

from sparsedraft.serve import schemas
from sparsedraft.serve.grammar import Grammars, TextGrammar, Unmade
from sparsedraft.speculate.loop.grammar import within
from tiny import build_tokenizer

END, WIDTH, LONGEST = 2, 320, 120
TOKENIZER = build_tokenizer()
GRAMMARS = Grammars(TOKENIZER, WIDTH, frozenset([END]))
CLOSERS = [i for i in range(WIDTH) if TOKENIZER.decode([i]) in ('"', "}", "]", ",", ":", "a", "b", "1")]
Validator = jsonschema.Draft202012Validator
A = {"a": {"type": "integer"}}
OPEN = {"type": "object", "properties": A}
NARROW = {"type": "object", "properties": {**A, "b": {"type": "boolean"}}, "additionalProperties": False}


@cache
def made(schema: str) -> Callable[[], TextGrammar]:
    text = f"start: %json {json.dumps(schemas.prepared(json.loads(schema), 'schema'))}"
    return asyncio.run(GRAMMARS.make(text))


def grammar(schema: dict[str, Any]) -> TextGrammar:
    return made(json.dumps(schema))()


def texts(schema: dict[str, Any], count: int) -> Iterator[list[int]]:
    """Random texts that the grammar lets end, without their last token; some random walks do not get there."""
    for seed in range(count):
        dice, follow, path = random.Random(seed), grammar(schema), list[int]()
        while len(path) < LONGEST and (mask := follow.allowed(path)) is not None:
            ids = mask.nonzero().flatten().tolist()
            closing = [token for token in ids if token in CLOSERS]
            if END in ids and dice.random() < 0.6:
                yield path
                break
            path.append(
                dice.choice(closing if closing and dice.random() < 0.4 else [i for i in ids if i != END] or ids)
            )


def accepts(schema: dict[str, Any], text: str) -> bool:
    follow, path = grammar(schema), TOKENIZER(text)["input_ids"]
    if within(follow, [], path) != path:
        return False
    mask = follow.allowed(path)
    return mask is not None and bool(mask[END])


def valid(schema: dict[str, Any], text: str) -> bool:
    return Validator(schema, format_checker=Validator.FORMAT_CHECKER).is_valid(json.loads(text))


# the keyword, a schema that has it, texts that satisfy it, and texts that break it
HELD: list[tuple[str, dict[str, Any], list[Any], list[Any]]] = [
    ("type", {"type": "integer"}, [1, -30], ["a", 1.5, None]),
    ("type", {"type": ["integer", "null"]}, [1, None], ["a", [1]]),
    ("enum", {"enum": ["a", 1, None, {"x": 1}]}, ["a", 1, {"x": 1}], ["b", 2, {"x": 2}]),
    ("const", {"const": {"a": [1]}}, [{"a": [1]}], [{"a": [2]}, 1]),
    ("properties", OPEN, [{"a": 1}, {}, {"b": "x"}], [{"a": "x"}, '{"\\u0061":"x"}']),
    ("required", {**OPEN, "required": ["a"]}, [{"a": 1}], [{}, {"b": 1}]),
    ("required", {"type": "object", "required": ["r"]}, [{"r": None}], [{}, {"b": 1}]),
    ("additionalProperties", NARROW, [{"a": 1}, {}], [{"c": 1}, {"a": 1, "c": 1}]),
    ("additionalProperties", {**OPEN, "additionalProperties": {"type": "string"}}, [{"b": "x"}], [{"b": 1}]),
    ("patternProperties", {**OPEN, "patternProperties": {"^x": {"type": "integer"}}}, [{"x1": 1, "y": "s"}],
     [{"x1": "s"}, {"a": "s"}]),
    ("patternProperties", {"type": "object", "properties": {"xa": {"type": "number"}},
     "patternProperties": {"^x": {"type": "integer"}}}, [{"xa": 1}], [{"xa": 1.5}]),
    ("minProperties", {**NARROW, "minProperties": 1}, [{"a": 1}, {"b": True}], [{}]),
    ("maxProperties", {**NARROW, "maxProperties": 1}, [{"a": 1}, {}], [{"a": 1, "b": True}]),
    ("items", {"type": "array", "items": {"type": "integer"}}, [[], [1, 2]], [["a"], [1, "a"]]),
    ("prefixItems", {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
     [[1, "a", True], [1], []], [["a"], [1, 2]]),
    ("items", {"type": "array", "prefixItems": [{"type": "integer"}], "items": False}, [[1], []], [[1, 2]]),
    ("minItems", {"type": "array", "minItems": 2}, [[1, 2]], [[1], []]),
    ("maxItems", {"type": "array", "maxItems": 1}, [[1], []], [[1, 2]]),
    ("minLength", {"type": "string", "minLength": 2}, ["ab", "éé"], ["a", "😀", ""]),
    ("maxLength", {"type": "string", "maxLength": 1}, ["a", "é", "😀", "\n", ""], ["ab", "\n\n"]),
    ("pattern", {"type": "string", "pattern": "b+"}, ["abc"], ["ac", ""]),
    ("pattern", {"type": "string", "pattern": "^a|b$"}, ["ac", "cb"], ["ca", "bc"]),
    ("pattern", {"type": "string", "pattern": "b+", "maxLength": 3}, ["abc"], ["abcd", "ac"]),
    ("minimum", {"type": "integer", "minimum": 3}, [3, 30], [2, -1]),
    ("minimum", {"type": "number", "minimum": 2.5}, [2.5, 3], [2.4, -3, "1e-9"]),
    ("maximum", {"type": "number", "maximum": 3}, [3, 2.5, -7], [3.1, 4, "1e9"]),
    ("exclusiveMinimum", {"type": "integer", "exclusiveMinimum": 3}, [4], [3]),
    ("exclusiveMaximum", {"type": "number", "exclusiveMaximum": 3}, [2.9], [3, "3.0"]),
    ("multipleOf", {"type": "integer", "multipleOf": 3}, [3, 0, -9], [4]),
    ("multipleOf", {"type": "number", "multipleOf": 0.5}, [3, 0.5], [0.3]),
    ("anyOf", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, [1, "a"], [None, []]),
    ("anyOf", {**NARROW, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": True}], [{}]),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"type": "string"}]}, [1, "a"], [None]),
    ("allOf", {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 5}]}, [3], [1, 7]),
    ("$ref", {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "minimum": 5}, [7], ["a", 1]),
    ("$ref", {"type": "object", "properties": {"c": {"$ref": "#"}}, "additionalProperties": False},
     [{"c": {"c": {}}}], [{"c": 1}]),
    ("$anchor", {"$defs": {"n": {"$anchor": "q", "type": "integer"}}, "$ref": "#q"}, [1], ["a"]),
    ("$defs", {"$defs": {"n": {"const": 1}}, "type": "array", "items": {"$ref": "#/$defs/n"}}, [[1]], [[2]]),
    ("definitions", {"definitions": {"n": {"const": 1}}, "$ref": "#/definitions/n"}, [1], [2]),
    ("format", {"type": "string", "format": "date"}, ["2024-02-29", "2023-12-31"], ["2023-02-29", "x", "2023-13-01"]),
    ("format", {"type": "string", "format": "ipv4"}, ["1.2.3.4"], ["1.2.3.400", "1.2.3"]),
    ("format", {"type": "string", "format": "ipv6"}, ["::1"], ["1::2::3", "x"]),
    ("format", {"type": "string", "format": "email"}, ["a@b.de"], ["x"]),
]  # fmt: skip

# what is refused, by the keyword that the sentence names
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("uniqueItems", {"type": "array", "uniqueItems": True}),
    ("contains", {"type": "array", "contains": {"type": "integer"}}),
    ("minContains", {"type": "array", "minContains": 2}),
    ("maxContains", {"type": "array", "maxContains": 2}),
    ("unevaluatedItems", {"type": "array", "unevaluatedItems": False}),
    ("unevaluatedProperties", {"type": "object", "unevaluatedProperties": False}),
    ("propertyNames", {"type": "object", "propertyNames": {"pattern": "^a"}}),
    ("dependentRequired", {"type": "object", "dependentRequired": {"a": ["b"]}}),
    ("dependentSchemas", {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}),
    ("dependencies", {"type": "object", "dependencies": {"a": ["b"]}}),
    ("not", {"type": "object", "not": {"required": ["a"]}}),
    ("if", {"if": {"minimum": 5}, "then": {"maximum": 8}}),
    ("then", {"then": {"maximum": 8}}),
    ("else", {"else": {"maximum": 8}}),
    ("$dynamicRef", {"$dynamicRef": "#q"}),
    ("$dynamicAnchor", {"$dynamicAnchor": "q"}),
    ("$recursiveRef", {"$recursiveRef": "#"}),
    ("$ref", {"$ref": "http://example.org/schema"}),
    ("$id", {"properties": {"a": {"$id": "b"}}}),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"type": "number"}]}),
    ("pattern", {"type": "string", "pattern": "^(?=a)"}),
    ("pattern", {"type": "string", "pattern": r"(a)\1"}),
    ("pattern", {"type": "string", "pattern": r"\bfoo"}),
    ("patternProperty", {"type": "object", "patternProperties": {"^x": {}, "y$": {"type": "null"}}}),
    ("format", {"type": "string", "format": "json-pointer"}),
    ("format", {"type": "string", "format": "unknown"}),
    ("minProperties", {"type": "object", "minProperties": 2}),
    ("multipleOf", {"type": "integer", "multipleOf": 1000003}),
    ("x-guidance", {"x-guidance": {"lenient": True}, "uniqueItems": True}),
    ("nullable", {"type": "integer", "nullable": True}),
    ("minlength", {"type": "string", "minlength": 3}),
]

ANNOTATED = {
    "title": "T", "description": "D", "default": 3, "examples": [4], "deprecated": True, "readOnly": True,
    "writeOnly": False, "$comment": "C", "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "http://example.org/x", "contentEncoding": "base64", "contentMediaType": "text/plain", "uniqueItems": False,
}  # fmt: skip


def as_text(value: Any) -> str:
    """An instance as JSON; what looks like JSON already is none of a string."""
    raw = isinstance(value, str) and (value.startswith('{"\\u') or value in ("1e9", "1e-9", "3.0"))
    return value if raw else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize(
    ("keyword", "schema", "good", "bad"), HELD, ids=[f"{n}-{row[0]}" for n, row in enumerate(HELD)]
)
def test_a_keyword_is_held(keyword: str, schema: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    """Of random texts all are valid; of the texts that the schema without the keyword allows, none that is not."""
    for value in good:
        assert valid(schema, as_text(value)) and accepts(schema, as_text(value)), value
    for value in bad:
        assert not valid(schema, as_text(value)) and not accepts(schema, as_text(value)), value
    found = [TOKENIZER.decode(path) for path in texts(schema, 25)]
    assert found and all(valid(schema, text) for text in found)
    wider = {name: value for name, value in schema.items() if name != keyword}
    for path in texts(wider, 25) if "$ref" not in json.dumps(wider) else ():
        text = TOKENIZER.decode(path)
        assert valid(schema, text) or not accepts(schema, text), text


@pytest.mark.parametrize(("keyword", "schema"), REFUSED, ids=[f"{n}-{row[0]}" for n, row in enumerate(REFUSED)])
def test_a_keyword_is_refused_by_its_name(keyword: str, schema: dict[str, Any]) -> None:
    inside = {"type": "object", "properties": {"p": schema}}
    for found in (schema, inside, {**inside, "required": ["p"]}, {"type": "array", "items": schema}):
        with pytest.raises((schemas.Unheld, Unmade)) as error:
            grammar(found)
        assert keyword in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_the_table_is_long_enough_and_nothing_is_on_both_sides_of_it() -> None:
    assert len({keyword for keyword, *_ in HELD} | {keyword for keyword, _ in REFUSED}) >= 28 + 14
    assert {keyword for keyword, *_ in HELD} <= schemas.HELD
    held = {json.dumps(schema) for _, schema, *_ in HELD}
    assert not held & {json.dumps(schema) for _, schema in REFUSED}


@pytest.mark.parametrize("kind", ["date", "time", "date-time"])
def test_dates_and_times_are_those_of_the_calendar(kind: str) -> None:
    good = {"date": ["2024-02-29"], "time": ["10:00:59Z", "23:59:00.5+01:30"], "date-time": ["2024-02-29T10:00:00Z"]}
    bad = {"date": ["2023-02-29", "1900-02-29"], "time": ["24:00:00Z", "10:00:60Z", "10:00:00"],
           "date-time": ["2024-02-30T10:00:00Z", "2024-02-29", "2024-02-29 10:00:00Z"]}  # fmt: skip
    schema = {"type": "string", "format": kind}
    assert all(accepts(schema, as_text(value)) for value in good[kind])
    assert not any(accepts(schema, as_text(value)) for value in bad[kind])
    assert not accepts({**schema, "pattern": "9$"}, as_text(good[kind][0])) or good[kind][0].endswith("9")
    read = {"date": date, "time": time, "date-time": datetime}[kind].fromisoformat
    for path in texts(schema, 40):
        read(json.loads(TOKENIZER.decode(path)))


def test_annotations_change_nothing() -> None:
    assert accepts({**ANNOTATED, "type": "integer"}, "5") and not accepts({**ANNOTATED, "type": "integer"}, '"a"')


@pytest.mark.parametrize(("schema", "told"), [
    ({"enum": ["x" * 70_000]}, "64 KiB"), ({"minimum": float("inf")}, "number that JSON does not have"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems"), ({"const": 1, "type": "null"}, "incompatible types"),
    ({"properties": {"a": 3}}, "no schema"), ({"$ref": "#"}, "no text satisfies it"), ({"type": "foo"}, "foo"),
    ({"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(16)]}, "too large"),
])  # fmt: skip
def test_what_is_no_schema_or_too_large_is_refused(schema: dict[str, Any], told: str) -> None:
    with pytest.raises((schemas.Unheld, Unmade), match=told):
        grammar(schema)


def test_deep_schemas_are_refused_before_they_cost_anything() -> None:
    deep: dict[str, Any] = {}
    for _ in range(schemas.DEPTH + 1):
        deep = {"items": deep}
    with pytest.raises(schemas.Unheld, match="deep"):
        schemas.prepared(deep, "schema")
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(schemas.Unheld, match="deep"):
        schemas.prepared(deep, "schema")


@pytest.mark.parametrize("seed", range(3))
def test_a_grammar_that_takes_tokens_back_is_as_one_that_did_not(seed: int) -> None:
    """Also behind the end of the text, and behind tokens that it forbids."""
    dice, schema = random.Random(seed), {**NARROW, "required": ["a"]}
    follow, path = grammar(schema), list[int]()
    ended = 0
    for _ in range(400):
        mask = follow.allowed(path)
        fresh = grammar(schema).allowed(path)
        assert (mask is None) == (fresh is None) and (mask is None or fresh is None or bool((mask == fresh).all()))
        ended += mask is None
        if mask is None or (path and dice.random() < 0.2):
            path = path[: dice.randrange(len(path))]
            continue
        ids = mask.nonzero().flatten().tolist()
        path = [
            *path,
            END if END in ids and dice.random() < 0.7 else dice.choice([i for i in ids if i in CLOSERS] or ids),
        ]
    assert ended > 3 and not follow.fault([*path, END])


def test_an_end_comes_only_where_the_grammar_accepts_and_then_alone() -> None:
    follow = grammar({"const": 12})
    one, two = TOKENIZER("1")["input_ids"], TOKENIZER("12")["input_ids"]
    ends = [follow.allowed(path) for path in ([], one, two)]
    assert [bool(mask[END]) for mask in ends if mask is not None] == [False, False, True]
    assert ends[2] is not None and ends[2].sum() == 1 and follow.allowed([*two, END]) is None
