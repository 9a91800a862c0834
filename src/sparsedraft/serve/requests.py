"""What clients may ask: OpenAI's fields that are supported, each checked, and no others.

A field that would change the answer and is not supported is refused, never ignored.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from sparsedraft.base import bounds
from sparsedraft.maths.sampling import Sampling
from sparsedraft.serve.structure import NamedTool, Part, ResponseFormat, Tool, ToolCall, ToolChoice

SEEDS = 1 << 62  # of requests that give none
DRAFTED = 16  # tokens a step that a request may ask for: all others wait meanwhile
Text = Annotated[str, Field(max_length=1 << 22)]
Token = Annotated[int, Field(ge=0, lt=bounds.VOCABULARY)]
Ids = Annotated[list[Token], Field(min_length=1, max_length=bounds.LENGTH)]
Likeliest = Annotated[int, Field(ge=0, le=20)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


# what clients send though it asks for nothing, or says nothing about the answer
EMPTY: dict[str, Any] = {"tools": [], "functions": [], "logit_bias": {}, "store": False, "tool_choice": "none"}
TOOLS = ("tools", "parallel_tool_calls")  # with the choice of none, tools are not shown to the model
# what pydantic calls the types that a field may have, one of which it names behind the field
TYPES = ("constrained-", "list[", "function-", "literal[", "NamedTool")
TAGGED = "response_format"  # behind which it names the type that was meant
ONLY = ("echo", "best_of", "presence_penalty", "frequency_penalty")  # fields of which one value alone is supported
ASIDE = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")


class TextPart(Part):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Part):
    """A message of a chat. An assistant's may be calls alone, and a tool's answers one of them."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    refusal: None = None  # these three are in every answer of OpenAI's client, which sends it back
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls are an assistant's, and the role is {self.role}: leave them out")
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing: write something")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id belongs to a message of the role tool: set both, or leave both out")
        for call in self.tool_calls or []:
            call.plain()
        return self

    def plain(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        role = "system" if self.role == "developer" else self.role
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content or []]
        told: dict[str, Any] = {"role": role, "content": "".join(parts)}
        if self.tool_calls:
            told["tool_calls"] = [call.plain() for call in self.tool_calls]
        return told if self.tool_call_id is None else {**told, "tool_call_id": self.tool_call_id}


class StreamOptions(Part):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool = False


def _tell_nothings(schema: dict[str, Any]) -> None:
    """Add to a request's schema what `Asked` takes away: null fields, and those that ask for nothing."""
    fields = schema["properties"]
    for name in fields.keys() - set(schema["required"]):
        if {"type": "null"} not in fields[name].get("anyOf", []):
            fields[name] = {"anyOf": [fields[name], {"type": "null"}]}
    for name, nothing in EMPTY.items():
        said = {"enum": [nothing, None]}
        fields[name] = {"anyOf": [fields[name], said]} if name in fields else said
    for name in ASIDE:
        fields[name] = {}


class Asked(Part):
    """What chats and plain completions share. `draft_model`: the drafter by its name, "none" for the target alone."""

    model_config = ConfigDict(json_schema_extra=_tell_nothings)

    model: str
    n: Annotated[int, Field(ge=1, le=16)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=8)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=bounds.LENGTH)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=bounds.VOCABULARY)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    draft_model: str | None = None
    num_draft_tokens: Annotated[int, Field(ge=0, le=DRAFTED)] | None = None
    include_metrics: bool = False
    presence_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _says_nothing(cls, body: object) -> object:
        """The body without null fields, and without those that ask for nothing; 16.0 is 16."""
        if not isinstance(body, dict):
            return body
        aside = (*ASIDE, *TOOLS) if body.get("tool_choice") == "none" else ASIDE
        return {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in body.items()
            if value is not None and name not in aside and not _is_nothing(name, value)
        }

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options belong to stream true: set it, or leave them out")
        return self

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(
            self.temperature, max(0, self.top_k), self.top_p, self.min_p, self.repetition_penalty
        )  # fmt: skip

    @property
    def stops(self) -> list[str]:
        """The strings that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def most_tokens(self) -> int | None:
        """The longest answer that is asked for."""
        return self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are to be told beside each; None: no log-probabilities."""
        return None

    def seeds(self) -> list[int]:
        """One for each answer; of a request that gives none they are random."""
        first = secrets.randbelow(SEEDS) if self.seed is None else self.seed
        return [(first + i) % 2**63 for i in range(self.n)]

    @property
    def repeats(self) -> bool:
        """Whether the same request is to have the same answer again, though it samples."""
        return self.seed is not None and not self.sampling.greedy


class ChatRequest(Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=bounds.LENGTH)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128, default_factory=list)]
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    logprobs: bool | None = None
    top_logprobs: Likeliest | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _tells(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs belong to logprobs true: set it, or leave them out")
        return self

    @model_validator(mode="after")
    def _can_call(self) -> Self:
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("tools name a function twice: give each its own name")
        if self.tool_choice != "auto" and not names:
            raise ValueError("tool_choice asks for a call, and there are no tools: name some, or leave it out")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is none of tools: name one")
        return self

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Asked):
    """POST /v1/completions. A prompt is a text or token ids, or a list of these; with a `suffix` that is not empty the
    answer is what stands between the two."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=64)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=64)]
    )
    max_tokens: Annotated[int, Field(ge=1, le=bounds.LENGTH)] | None = 16
    echo: Literal[False] = False
    logprobs: Likeliest | None = None
    suffix: Text | None = None
    best_of: Literal[1] | None = None

    @model_validator(mode="after")
    def _infills(self) -> Self:
        if self.suffix and not all(isinstance(prompt, str) for prompt in self.prompts):
            raise ValueError("suffix goes with a prompt that is text, not with token ids: send the text itself")
        return self

    @property
    def likeliest(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as a text or as ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [part for part in self.prompt if isinstance(part, int)]
        return [ids] if ids else [part for part in self.prompt if not isinstance(part, int)]


def _field(error: Mapping[str, Any]) -> tuple[str, ...]:
    """The names and numbers that lead to the field of a complaint."""
    place = [str(part) for part in error["loc"] if part not in ("body", "function-after")]
    if place[:1] == [TAGGED]:
        del place[1:2]
    return tuple(place[:1] + [part for part in place[1:] if not part.startswith(TYPES)])


def _is_nothing(name: str, value: object) -> bool:
    """Whether a field is one of EMPTY, with that value."""
    return name in EMPTY and type(value) is type(EMPTY[name]) and value == EMPTY[name]


def sentence(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """(one sentence, the field) of pydantic's complaints: of the first field's, the one that tells most.

    Where a field may be of several types, there is one for each: that of the type that was meant goes furthest, and
    does not say that the type is wrong.
    """
    first = _field(errors[0])
    of_first = [error for error in errors if _field(error)[: len(first)] == first]
    error = min(of_first, key=lambda error: (error["type"].endswith("_type"), -len(_field(error))))
    field, kind, what = ".".join(_field(error)), error["type"], error["msg"]
    if kind == "extra_forbidden" or (field in ONLY and kind != "missing" and not kind.endswith("_type")):
        return f"{field} is not supported by this server: leave it out.", field
    if kind == "missing":
        return f"{field or 'the body'} is missing: {'give it' if field else 'send a JSON object'}.", field
    if kind == "json_invalid":
        return "the body is no JSON: send an object.", ""
    if kind == "value_error":
        return f"{what.removeprefix('Value error, ')}.", field
    if not field:
        return "the body is no JSON object: send one, with Content-Type: application/json.", ""
    return f"{field} cannot be so ({what[0].lower()}{what[1:]}): mend it, or leave it out.", field
