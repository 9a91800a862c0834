"""Calls that a model writes as a plain or fenced object at the beginning of its answer, and what is none."""

import json
import random

import pytest
from test_tools import BARE, FORMS, TAGGED, fits, read, written

from sparsedraft.serve.tools import CallForm

PRETTY = '{\n  "name": "look",\n  "arguments": {\n    "place": "fox"\n  }\n}'
CALLS = [
    PRETTY,
    f"```json\n{PRETTY}\n```",
    f"\n```\n{PRETTY}\n```\n",
    '{"name":"look","parameters":{"place":"fox"}}',
    f"```json\n{written(BARE)}```",
]
TEXTS = [
    f"Here it is:\n```json\n{PRETTY}\n```",
    f"```python\n{PRETTY}\n```",
    '```json\n{"name": "other", "arguments": {"place": "fox"}}\n```',
    '```json\n{"name": "look", "price": 3}\n```',
    '{"arguments": {}}',
    "``` json",
    "```json\n[1, 2]\n```",
    '{\n  "name": "look"}',
    "{",
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("text", CALLS)
def test_an_object_at_the_beginning_is_a_call(text: str, form: CallForm) -> None:
    assert fits(text, form, False), "it is allowed"
    if text != written(form):
        assert not fits(text, form, True), "where a call is asked for, it has the template's form"
    for seed in range(6):
        said, calls, reader = read(form, False, text, random.Random(seed))
        assert said == "" and reader.called and len(calls) == 1
        assert calls[0]["function"]["name"] == "look"
        assert json.loads(calls[0]["function"]["arguments"]) == {"place": "fox"}


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_what_names_no_function_at_the_beginning_is_text(text: str, form: CallForm) -> None:
    assert fits(text, form, False)
    for seed in range(6):
        said, calls, reader = read(form, False, text, random.Random(seed))
        assert (said, calls, reader.called) == (text, [], False)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("begin", ['{"name": "look", "arguments":', '```json\n{\n  "name": "look",\n "parameters" : '])
def test_what_has_begun_a_call_follows_its_schema(begin: str, form: CallForm) -> None:
    assert fits(f'{begin} {{"place": "fox"', form, False) is None
    for wrong in (' {"days": 3}', " 3", ' "place"', ' {"place": "fox"}} and more', " {} <tool_call>\n"):
        assert fits(begin + wrong, form, False) is False


def test_behind_the_object_the_answer_ends() -> None:
    for call in CALLS:
        for more in (" and so on", f"\n{PRETTY}", f"\n{written(TAGGED)}"):
            assert fits(call, TAGGED, False) and fits(call + more, TAGGED, False) is False


def test_only_what_may_become_a_call_is_held_back() -> None:
    """As soon as it cannot, it is told."""
    for text, told in (("```json\n{", 0), ("```j{", 5), ('{"name": "lo', 0), ('{"name": "ly', 12), ("Yes {", 5)):
        said, at = "", 0
        reader = read(TAGGED, False, "", random.Random(0))[2]
        for sign in text:
            said, at = said + reader.more(sign, last=False)[0], at + 1
        assert said == text[:told]
    assert read(TAGGED, False, '```json\n{"name": "lo', random.Random(0))[0] == '```json\n{"name": "lo'
