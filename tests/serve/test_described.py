"""The server against its own description: what the description allows and what it forbids, made up by schemathesis."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from served import Served, serving
from sparsedraft.serve.options import ServeOptions

schemathesis = pytest.importorskip("schemathesis")

from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
POSTS = ("/v1/chat/completions", "/v1/completions")
GETS = ("/health", "/metrics", "/v1/models", "/v1/models/{name}")
EXAMPLES = 80  # of each path and kind
RULED = (  # fields that only go with others, or with what is loaded
    "tools", "tool_choice", "response_format", "chat_template_kwargs", "stream_options", "top_logprobs", "suffix",
)  # fmt: skip


@pytest.fixture(scope="module")
def served(talker: Path) -> Iterator[Served]:
    models = {"target": str(talker), "drafter": (str(talker), "lookup"), "served_name": "talker"}
    yield from serving(ServeOptions(**models, parallel=2, queue=64, max_new_tokens=4))


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("path", POSTS)
def test_requests_for_text(served: Served, path: str, mode: GenerationMode) -> None:
    """No fault of the server's, no reply that the description does not have, no answer to what it forbids."""
    statuses = fuzz(served, path, "POST", mode, EXAMPLES)
    if mode is GenerationMode.POSITIVE:
        assert statuses[200] >= 8, "some are answered, so that whole replies are seen: rules across fields refuse many"
    else:
        assert {*statuses} <= {200, 400, 404}
    assert served.post(path, {"model": "talker", **({"prompt": "x"} if path.endswith("v1/completions") else {
        "messages": [{"role": "user", "content": "x"}]})})[0] == 200, "and the next request goes on"  # fmt: skip


@pytest.mark.parametrize("path", GETS)
def test_what_is_only_read(served: Served, path: str) -> None:
    assert fuzz(served, path, "GET", GenerationMode.POSITIVE, 10).total() > 0


def fuzz(served: Served, path: str, method: str, mode: GenerationMode, examples: int) -> Counter[int]:
    """Ask what the description allows, or forbids, and check each reply; how many had which status."""
    operation = schemathesis.openapi.from_url(f"{served.url}/openapi.json")[path][method]
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck]
    )
    @given(case=operation.as_strategy(generation_mode=mode), plain=st.booleans(), words=st.text(max_size=20))
    def ask(case: schemathesis.Case, plain: bool, words: str) -> None:
        if plain and method == "POST" and mode is GenerationMode.POSITIVE:  # else hardly any chat is answered
            case.body = {name: value for name, value in case.body.items() if name not in RULED}
            if "messages" in case.body:
                case.body["messages"] = [{"role": "user", "content": words}]
        response = case.call()
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    ask()
    return statuses


def test_the_description_names_what_is_served(served: Served) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json").raw_schema
    assert {*schema["paths"]} == {*POSTS, *GETS}
    names = schema["components"]["schemas"]["ChatRequest"]["properties"]
    assert names["model"]["enum"] == ["talker"] and names["draft_model"]["enum"] == [
        "none",
        "talker-drafter",
        "lookup",
        None,
    ]
    for operations in schema["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"], "FastAPI's own refusals are never sent"


@pytest.mark.parametrize("body", [
    b'{"model": "talker", "prompt": "\\ud800"}', b'{"\\ud800": 1}', b'{"model": "\\udfff", "prompt": "x"}', b"\xff{}",
    b'{"model": "talker", "prompt": "x", "seed": 1' + b"0" * 5000 + b"}", b"[" * 100_000, b"null", b'{"a": NaN}',
    b'{"model": "talker", "prompt": "x", "max_tokens": 1e400}',
    b'{"model": "talker", "prompt": "x", "stop": "\\ud800"}',
    b'{"model": "talker", "prompt": "x", "draft_model": "\\ud800"}',
    b'{"model": "talker", "prompt": "x", "metadata": "\\ud800", "suffix": "\\ud800"}',
])  # fmt: skip
def test_bodies_that_no_description_allows(served: Served, body: bytes) -> None:
    status, answer = served.post("/v1/completions", body)
    assert status in (400, 404) and answer["error"]["message"].endswith("."), answer


def test_numbers_and_switches_are_what_they_are_called(served: Served) -> None:
    """JSON's own kinds: no words for numbers, no numbers for switches; 16.0 is a whole number."""
    good = {"model": "talker", "prompt": "x", "max_tokens": 2}
    assert served.post("/v1/completions", {**good, "max_tokens": 2.0, "temperature": 0, "seed": 3.0})[0] == 200
    for wrong in (
        {"max_tokens": "2"},
        {"stream": 1},
        {"temperature": "0.5"},
        {"n": True},
        {"max_tokens": 2.5},
        {"store": 0},
    ):
        status, answer = served.post("/v1/completions", good | wrong)
        assert status == 400 and answer["error"]["param"] == next(iter(wrong)), answer
