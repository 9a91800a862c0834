"""Answers in a form, as clients see them: the openai package against a real server, and what must be refused."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
import torch
from pydantic import BaseModel, Field
from test_server import Served, serving

from callers import ASKED, LOOK, PLACE, WAIT, build_caller
from sparsedraft.models.tokenizers import templates
from sparsedraft.serve import grammar
from sparsedraft.serve.options import ServeOptions

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 3},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["dog", "fox"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
FORMAT: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}


class Animal(BaseModel):
    """What the client asks to be parsed."""

    kind: Literal["dog", "fox"]
    age: int = Field(ge=0, le=20)
    friend: bool | None


@pytest.fixture(scope="module", params=["native", "transformers"])
def caller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = build_caller(tmp_path_factory.mktemp("structured") / "caller")
    options = ServeOptions(
        target=str(folder), drafter=str(folder), parallel=3, queue=20, served_name="caller", runtime=request.param,
    )  # fmt: skip
    yield from serving(options)


def ask(served: Served, **how: Any) -> Any:
    how = {"model": "caller", "messages": ASKED, "max_tokens": 300, "temperature": 1.0, **how}
    return served.client.chat.completions.create(**how)


def test_answers_satisfy_their_schema_beside_others(caller: Served) -> None:
    """Each of several at once has its own schema, or none, and is as alone."""
    small = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer", "maximum": 99}}}

    def one(seed: int) -> str:
        form = (FORMAT, small, {"type": "text"})[seed % 3]
        answer = ask(caller, seed=seed, response_format=form, max_tokens=300 if seed % 3 < 2 else 8).choices[0]
        if seed % 3 < 2:
            assert answer.finish_reason == "stop"
            jsonschema.validate(json.loads(answer.message.content), form["json_schema"]["schema"])
        return str(answer.message.content)

    with ThreadPoolExecutor(6) as pool:
        together = [*pool.map(one, range(12))]
    assert together == [one(seed) for seed in range(12)] and len(set(together)) > 8


def test_a_model_of_pydantic_is_parsed(caller: Served) -> None:
    for seed in range(3):
        parsed = caller.client.chat.completions.parse(
            model="caller", messages=ASKED, response_format=Animal, max_tokens=300, seed=seed
        )
        assert isinstance(parsed.choices[0].message.parsed, Animal)


def test_any_object_and_its_stream(caller: Served) -> None:
    how = {"response_format": {"type": "json_object"}, "seed": 4, "max_tokens": 60}
    whole = ask(caller, **how).choices[0]
    assert whole.message.content.startswith("{")
    if whole.finish_reason == "stop":
        assert isinstance(json.loads(whole.message.content), dict)
    chunks = [chunk.choices[0] for chunk in ask(caller, stream=True, **how)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].finish_reason == whole.finish_reason


@pytest.mark.parametrize(
    "more", [{"response_format": FORMAT}, {"tools": [LOOK, WAIT]}, {"tools": [LOOK], "tool_choice": "required"}]
)
def test_greedy_answers_are_those_without_a_drafter(caller: Served, more: dict[str, Any]) -> None:
    def said(drafter: str | None) -> Any:
        extra = {"draft_model": drafter} if drafter else {"num_draft_tokens": 4}
        message = ask(caller, temperature=0, extra_body=extra, **more).choices[0].message
        return message.content, [call.function for call in message.tool_calls or []]

    assert said(None) == said("none")


def test_drafts_are_accepted_as_without_a_grammar(caller: Served) -> None:
    """The target as its own drafter: every draft of a step fits, as it follows the grammar."""
    body = {"model": "caller", "messages": ASKED, "temperature": 0, "max_tokens": 60, "num_draft_tokens": 3,
            "include_metrics": True, "response_format": FORMAT}  # fmt: skip
    status, answer = caller.post("/v1/chat/completions", body)
    (told,) = answer["metrics"]["speculative_decoding"]
    assert status == 200 and told["acceptance_rate"] > 0.85


def test_an_answer_ends_by_length_or_by_a_stop_string(caller: Served) -> None:
    cut = ask(caller, response_format=FORMAT, max_tokens=3, seed=1).choices[0]
    assert cut.finish_reason == "length" and cut.message.content.startswith("{")
    stopped = ask(caller, response_format=FORMAT, stop=['"age"'], seed=1).choices[0]
    assert stopped.finish_reason == "stop" and '"age"' not in stopped.message.content


def test_logprobs_are_of_the_unmodified_logits(caller: Served) -> None:
    answer = ask(caller, response_format=FORMAT, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2).choices[0]
    told, model = answer.logprobs.content, caller.service.pair.target
    prompt = templates.chat_ids(model.tokenizer, ASKED)
    by_text = {model.tokenizer.decode([number]): number for number in range(320)}
    ids = [by_text[one.token] for one in told]
    with torch.no_grad():
        logits = model.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    rows = logits.float().log_softmax(-1)
    assert [one.logprob for one in told] == pytest.approx(
        [float(r[i]) for r, i in zip(rows, ids, strict=True)], abs=5e-3
    )
    assert any(one.logprob < one.top_logprobs[0].logprob - 1 for one in told), "the grammar overruled the model"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_a_forced_call_follows_its_parameters(caller: Served, choice: Any) -> None:
    for seed in range(4):
        answer = ask(caller, tools=[LOOK, WAIT], tool_choice=choice, parallel_tool_calls=False, seed=seed).choices[0]
        (call,) = answer.message.tool_calls
        assert answer.finish_reason == "tool_calls" and answer.message.content is None and call.id
        assert call.function.name in (["look", "wait"] if choice == "required" else ["look"])
        jsonschema.validate(
            json.loads(call.function.arguments), PLACE if call.function.name == "look" else {"maxProperties": 0}
        )


def test_auto_calls_where_the_model_wants_to(caller: Served) -> None:
    answer = ask(caller, tools=[LOOK], temperature=0).choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and answer.message.content == "a dog"
    assert call.function.name == "look" and json.loads(call.function.arguments) == {"place": "fox"}
    none = ask(caller, tools=[LOOK], tool_choice="none", temperature=0).choices[0]
    assert none.message.tool_calls is None and none.message.content == "seven apples are left."


def test_calls_are_streamed_by_name_and_then_by_arguments(caller: Served) -> None:
    said, name, arguments, reasons = "", "", "", []
    for chunk in ask(caller, tools=[LOOK], temperature=0, stream=True):
        (choice,) = chunk.choices
        said, reasons = said + (choice.delta.content or ""), [*reasons, choice.finish_reason]
        for delta in choice.delta.tool_calls or []:
            assert delta.index == 0 and (bool(delta.id) == bool(delta.function.name))
            name, arguments = name + (delta.function.name or ""), arguments + (delta.function.arguments or "")
    assert (said, name, json.loads(arguments)) == ("a dog", "look", {"place": "fox"})
    assert [reason for reason in reasons if reason] == ["tool_calls"]


def test_calls_and_their_results_go_back_to_the_template(caller: Served) -> None:
    answer = ask(caller, tools=[LOOK], temperature=0).choices[0].message
    result = {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "brown"}
    again = ask(caller, messages=[*ASKED, answer, result], tools=[LOOK], temperature=0, max_tokens=4)
    assert again.usage.prompt_tokens > ask(caller, tools=[LOOK], temperature=0, max_tokens=4).usage.prompt_tokens
    without = [*ASKED, {"role": "assistant", "content": answer.content}, result]
    assert again.usage.prompt_tokens > ask(caller, messages=without, tools=[LOOK], max_tokens=4).usage.prompt_tokens


def form(**schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def tool(**parameters: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}


def called(arguments: str) -> dict[str, Any]:
    return {"id": "a", "type": "function", "function": {"name": "look", "arguments": arguments}}


BAD: list[tuple[dict[str, Any], str, str]] = [
    (form(type="array", uniqueItems=True), "'uniqueItems' cannot be enforced", "response_format.json_schema.schema"),
    (form(oneOf=[{"type": "integer"}, {"type": "number"}]), "oneOf", "response_format.json_schema.schema"),
    (form(type="string", pattern="(?=a)"), "pattern", "response_format.json_schema.schema"),
    (form(allOf=[{"pattern": f"a{i}.*b"} for i in range(30)], type="string"), "has 30 patterns",
     "response_format.json_schema.schema"),
    (form(**{"$ref": "#/$defs/0", "$defs": {str(i): {"pattern": f"{i}.*b", "$ref": f"#/$defs/{i + 1}"}
             for i in range(30)}}), "has 30 patterns", "response_format.json_schema.schema"),
    (form(maxLength=float("inf")), "number that JSON does not have", "response_format.json_schema.schema"),
    ({"response_format": {"type": "xml"}}, "response_format", "response_format"),
    ({"response_format": {"type": "json_schema"}}, "json_schema is missing", "response_format.json_schema"),
    (tool(type="object", properties={"a": {"not": {}}}), "'not' cannot be enforced", "tools.0.function.parameters"),
    (tool(type="array"), "is of no object", "tools.0.function.parameters"),
    ({"tools": [LOOK, LOOK]}, "name a function twice", ""),
    ({"tool_choice": "required"}, "there are no tools", ""),
    ({"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "none of tools", ""),
    ({"tools": [LOOK], **form(type="array", uniqueItems=True)}, "'uniqueItems'", "response_format.json_schema.schema"),
    ({"messages": [*ASKED, {"role": "tool", "content": "x"}]}, "tool_call_id belongs", "messages.1"),
    ({"messages": [*ASKED, {"role": "user"}]}, "content is missing", "messages.1"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [called("{}")]}]}, "assistant's", "messages.0"),
    ({"messages": [{"role": "assistant", "tool_calls": [called("[")]}]}, "no JSON object", "messages.0"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "told", "field"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_held_is_told_in_one_sentence(
    caller: Served, more: dict[str, Any], told: str, field: str
) -> None:
    status, answer = caller.post(
        "/v1/chat/completions", {"model": "caller", "messages": ASKED, "max_tokens": 4, **more}
    )
    assert status == 400 and told in answer["error"]["message"], answer
    assert answer["error"]["message"].endswith(".") and "\n" not in answer["error"]["message"]
    assert (answer["error"]["param"] or "") == field


def test_a_grammar_is_compiled_once_and_not_for_ever(caller: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    made = caller.service.forms._grammars._made
    for _ in range(2):
        ask(caller, **form(const="once"), max_tokens=8)
        kept = len(made)
    ask(caller, **form(const="once"), max_tokens=8)
    assert len(made) == kept
    monkeypatch.setattr(grammar, "SECONDS", 0)
    status, answer = caller.post("/v1/chat/completions", {"model": "caller", "messages": ASKED, **form(const="late")})
    assert status == 400 and "too long to compile" in answer["error"]["message"]
    assert ask(caller, **form(const="once"), max_tokens=8).choices, "one that is kept waits for no other"
    monkeypatch.setattr(grammar, "KEPT", 1)
    monkeypatch.setattr(grammar, "SECONDS", 10)
    ask(caller, **form(const="other"), max_tokens=8)
    assert len(made) == 1


def test_a_template_without_tools_is_told(talker: Path) -> None:
    for served in serving(ServeOptions(target=str(talker), served_name="caller", parallel=1)):
        status, answer = served.post("/v1/chat/completions", {"model": "caller", "messages": ASKED, "tools": [LOOK]})
        assert status == 400 and "the chat template of caller shows no tools" in answer["error"]["message"]
        assert served.post("/v1/chat/completions", {"model": "caller", "messages": ASKED, "tools": [LOOK],
                           "tool_choice": "none", "max_tokens": 2})[0] == 200  # fmt: skip
