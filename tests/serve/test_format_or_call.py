"""Chats with tools and a response_format: the answer is calls, or JSON that satisfies the schema."""

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from test_tools import FORMS, fits, read, written

import callers
from callers import ASKED, LOOK, PLACE, WAIT
from served import Served, serving
from sparsedraft.serve import schemas
from sparsedraft.serve.forms import Forms
from sparsedraft.serve.options import ServeOptions
from sparsedraft.serve.refused import Refused
from sparsedraft.serve.requests import ChatRequest
from sparsedraft.writers.loaded import LoadedModel
from tiny import build_llama, build_tokenizer

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["title", "age"],
    "additionalProperties": False,
}
FORMAT: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "book", "schema": SCHEMA}}
ANSWER = schemas.prepared(SCHEMA, "response_format")
JSON = '{"title": "<tool_call>", "age": 3}'


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_an_answer_is_one_or_the_other(form: Any) -> None:
    bare = '{\n  "name": "look", "arguments": {"place": "fox"}\n}'
    for text in (JSON, written(form), bare):
        assert fits(text, form, False, answer=ANSWER), text
        assert not fits(f"{text}\n{bare}", form, False, answer=ANSWER), "and nothing behind it"
        assert fits(f"\n{text}", form, False, answer=ANSWER) is False, "nor ahead of it, where JSON has nothing"
    named = schemas.prepared(
        {"type": "object", "properties": {"name": {"const": "look"}, "age": {"type": "integer"}}}, ""
    )
    other = '{"name": "look", "age": 3}'
    assert fits(other, form, False, answer=named) and fits(bare, form, False, answer=named)
    assert read(form, False, other, random.Random(0), named)[:2] == (other, [])
    for text in ("\n", "hello", f"a dog {written(form)}", f"```json\n{JSON}\n```", '{"title": 3', '{"name": "other'):
        assert fits(text, form, False, answer=ANSWER) is False, text
    assert fits(written(form), form, True, answer=ANSWER) and not fits(JSON, form, True, answer=ANSWER)
    for seed in range(6):
        dice = random.Random(seed)
        assert read(form, False, JSON, dice, ANSWER)[:2] == (JSON, []), "a mark in a string begins no call"
        said, calls, reader = read(form, False, written(form), dice, ANSWER)
        assert said == "" and reader.called and len(calls) == 1


def form_of(template: str, **more: Any) -> str:
    """Which text the answers to a request may have: "calls", "untagged" for calls without tags; Refused."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    forms = Forms(LoadedModel(build_llama(layers=1), tokenizer, frozenset({2})), "caller")
    request = ChatRequest.model_validate({"model": "caller", "messages": ASKED, "tools": [LOOK], **more})
    grammar = asyncio.run(forms.of(request)).grammar()
    assert grammar is not None
    untagged = tokenizer('{"name": "look", "arguments": {"place": "fox"')["input_ids"]
    return "untagged" if grammar.follows(untagged) else "calls"


def test_json_that_begins_as_a_call() -> None:
    """It is JSON where calls have tags; where they have none, nobody could tell the two apart."""
    alike = {"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "type": "object", "properties": {"name": {"type": "string"}, "arguments": {"type": "array"}},
    }}}  # fmt: skip
    assert (
        form_of(callers.TAGGED, response_format=FORMAT) == form_of(callers.BARE, response_format=FORMAT) == "untagged"
    )
    assert form_of(callers.TAGGED, response_format=alike) == "calls"
    for template in (callers.BARE, callers.PLAIN):
        with pytest.raises(Refused, match="begins as a call of look") as told:
            form_of(template, response_format=alike)
        assert told.value.param == "response_format.json_schema.schema"
        assert form_of(template, response_format=alike, tool_choice="required") != ""
    with pytest.raises(Refused, match="'not' cannot be enforced"):
        bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
        form_of(callers.TAGGED, response_format=bad, tool_choice="required")


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """It has learnt nothing, and begins either."""
    folder, tokenizer = tmp_path_factory.mktemp("either") / "caller", build_tokenizer()
    tokenizer.chat_template = callers.TAGGED
    build_llama(seed=1, layers=1, max_position_embeddings=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    yield from serving(ServeOptions(target=str(folder), drafter=str(folder), parallel=3, served_name="caller"))


def ask(served: Served, **how: Any) -> Any:
    how = {"model": "caller", "messages": ASKED, "max_tokens": 1500, "temperature": 1.0, **how}
    return served.client.chat.completions.create(tools=[LOOK, WAIT], response_format=FORMAT, **how)


def test_answers_of_a_model(caller: Served) -> None:
    kinds = set()
    for seed in range(12):
        answer = ask(caller, seed=seed).choices[0]
        calls = answer.message.tool_calls or []
        kinds.add(answer.finish_reason)
        if not calls:
            assert answer.finish_reason == "stop"
            jsonschema.validate(json.loads(answer.message.content), SCHEMA)
        for call in calls:
            assert answer.finish_reason == "tool_calls" and answer.message.content is None
            look = call.function.name == "look"
            jsonschema.validate(json.loads(call.function.arguments), PLACE if look else {"maxProperties": 0})
    assert kinds == {"stop", "tool_calls"}, "both happen"
    forced = ask(caller, tool_choice="required", seed=1).choices[0]
    assert forced.message.tool_calls and forced.message.content is None


def test_the_stream_and_the_drafts(caller: Served) -> None:
    for seed in range(4):
        whole = ask(caller, seed=seed).choices[0].message
        chunks = [chunk.choices[0].delta for chunk in ask(caller, seed=seed, stream=True)]
        assert "".join(delta.content or "" for delta in chunks) == (whole.content or "")
        pieces = [call for delta in chunks for call in delta.tool_calls or []]
        told = [call.function.arguments for call in whole.tool_calls or []]
        assert "".join(call.function.arguments or "" for call in pieces) == "".join(told)
    greedy = [ask(caller, temperature=0, extra_body=extra).choices[0].message for extra in (
        {"num_draft_tokens": 4}, {"draft_model": "none"})]  # fmt: skip
    assert greedy[0].content == greedy[1].content
    assert [call.function for call in greedy[0].tool_calls or []] == [
        call.function for call in greedy[1].tool_calls or []
    ]
