"""The server's description of itself, /openapi.json: what may be asked, and what is answered.

The replies are described here by schemas that nothing at run time goes through; the tests hold replies against them.
"""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict

from sparsedraft.serve.service import Names

Reason = Literal["stop", "length", "tool_calls"]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Failure(_Reply):
    """What went wrong: one sentence, the field at fault, and OpenAI's code where there is one."""

    message: str
    type: str
    param: str | None
    code: str | None


class FailureReply(_Reply):
    """A request that is not answered."""

    error: Failure


class PromptDetails(_Reply):
    """Tokens of the prompts that had been read before."""

    cached_tokens: int


class Usage(_Reply):
    """Tokens of a request and of its answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Drafting(_Reply):
    """How the drafts of one answer did."""

    num_tokens: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    mean_acceptance_length: float
    acceptance_rate: float
    accepted_per_position: list[int]


class Metrics(_Reply):
    """The drafts of each answer, where the request has include_metrics."""

    speculative_decoding: list[Drafting]


class LikelyToken(_Reply):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(LikelyToken):
    """A token of an answer, and the likeliest at its place."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(_Reply):
    """Log-probabilities of a chat's answer."""

    content: list[ChatToken]
    refusal: None


class CompletionLogprobs(_Reply):
    """Log-probabilities of a completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class WrittenFunction(_Reply):
    """The function that is called, and its arguments as JSON."""

    name: str
    arguments: str


class WrittenCall(_Reply):
    """A call that the model writes."""

    id: str
    type: Literal["function"]
    function: WrittenFunction


class AnswerMessage(_Reply):
    """What the model says; null where that is calls alone."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[WrittenCall] | None = None


class ChatChoice(_Reply):
    """One answer to a chat."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Reason


class CompletionChoice(_Reply):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason


class _Answers(_Reply):
    id: str
    created: int
    model: str
    usage: Usage


class ChatReply(_Answers):
    """The answers to a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    metrics: Metrics | None = None


class CompletionReply(_Answers):
    """The completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    metrics: Metrics | None = None


class Model(_Reply):
    """The target, and what a request may name as its draft_model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    draft_models: list[str]


class Models(_Reply):
    """The models that are served."""

    object: Literal["list"]
    data: list[Model]


class Health(_Reply):
    """Whether the server decodes."""

    status: Literal["ok", "failed"]


Responses = dict[int | str, dict[str, Any]]
GUARDED = {400: "The host name is not known here.", 401: "The key is missing or wrong."}
REFUSALS = {
    400: "The request cannot be so.",
    401: "The key is missing or wrong.",
    404: "The model is not served here.",
    413: "The body is too large.",
    429: "All places and the queue are taken; Retry-After says when to ask again.",
    500: "The answer could not be finished.",
    503: "The server is shutting down, or has not enough memory.",
}


def failures(told: dict[int, str]) -> Responses:
    """These statuses, each with an error as its body."""
    return {status: {"model": FailureReply, "description": text} for status, text in told.items()}


def answers(reply: type[BaseModel]) -> Responses:
    """What a request for text is answered with: `reply`, or events where it asks for a stream."""
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    events = {"text/event-stream": {"schema": event}}
    whole = {"model": reply, "description": "The answers; with stream, events of pieces.", "content": events}
    return {200: whole, **failures(REFUSALS)}


def describe(app: FastAPI, names: Names) -> None:
    """Let the application describe itself with the names of the models that it serves."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _named(get_openapi(title=app.title, version=app.version, routes=app.routes), names)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _named(schema: dict[str, Any], names: Names) -> dict[str, Any]:
    """The schema with these names, and without the replies of FastAPI's own that are never given."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    parts = schema["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        parts.pop(unused, None)
    for request in ("ChatRequest", "CompletionRequest"):
        properties = parts[request]["properties"]
        properties["model"] = {"type": "string", "enum": [names.target]}
        properties["draft_model"] = {"enum": [*names.drafters, None], "default": None}
    return schema
