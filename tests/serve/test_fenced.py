"""A model that calls by a fenced object, whatever its template says, as a client sees it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from callers import ASKED, FENCED, LOOK, build_caller
from served import Served, serving
from sparsedraft.serve.options import ServeOptions


@pytest.fixture(scope="module")
def fencer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = str(build_caller(tmp_path_factory.mktemp("fenced") / "fencer", fenced=True))
    yield from serving(ServeOptions(target=folder, drafter=folder, parallel=2, served_name="fencer"))


def ask(served: Served, tools: list[Any], **how: Any) -> Any:
    how = {"model": "fencer", "messages": ASKED, "max_tokens": 120, "temperature": 0, **how}
    return served.client.chat.completions.create(tools=tools, **how)


def test_it_is_a_call(fencer: Served) -> None:
    for extra in ({"draft_model": "none"}, {"num_draft_tokens": 3}):
        answer = ask(fencer, [LOOK], extra_body=extra).choices[0]
        (call,) = answer.message.tool_calls
        assert answer.finish_reason == "tool_calls" and answer.message.content is None
        assert call.function.name == "look" and json.loads(call.function.arguments) == {"place": "fox"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "brown"}
    assert ask(fencer, [LOOK], messages=[*ASKED, answer.message, result], max_tokens=2).choices


def test_it_is_streamed_as_one(fencer: Served) -> None:
    deltas = [chunk.choices[0] for chunk in ask(fencer, [LOOK], stream=True)]
    assert not any(delta.delta.content for delta in deltas), "none of it was told as content before"
    pieces = [call for delta in deltas for call in delta.delta.tool_calls or []]
    assert [piece.function.name for piece in pieces if piece.id] == ["look"] and len(pieces) > 2
    assert json.loads("".join(piece.function.arguments or "" for piece in pieces)) == {"place": "fox"}
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["tool_calls"]


def test_where_it_is_cut(fencer: Served) -> None:
    """Before the arguments nothing says that it is a call: it is content."""
    for tokens in (4, 8):
        answer = ask(fencer, [LOOK], max_tokens=tokens).choices[0]
        assert answer.finish_reason == "length" and answer.message.tool_calls is None
        assert answer.message.content and FENCED.startswith(answer.message.content)
        chunks = ask(fencer, [LOOK], max_tokens=tokens, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.message.content
