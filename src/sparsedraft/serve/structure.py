"""The fields of a chat that ask for a form of the answer: OpenAI's `response_format`, `tools` and `tool_choice`."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
About = Annotated[str, Field(max_length=1 << 16)]
Long = Annotated[str, Field(max_length=1 << 22)]


class Part(BaseModel):
    """A part of a request: no field but those that are known."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class TextFormat(Part):
    """Any text."""

    type: Literal["text"]


class JsonObject(Part):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Part):
    """A schema. It is enforced, `strict` or not."""

    name: Name
    description: About | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class JsonSchema(Part):
    """JSON that satisfies a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObject | JsonSchema, Field(discriminator="type")]


class Function(Part):
    """A function that the model may call; without `parameters` it takes none."""

    name: Name
    description: About | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part):
    """A tool; all are functions."""

    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """The tool as chat templates take it."""
        about = {"name": self.function.name, "description": self.function.description or ""}
        return {"type": "function", "function": {**about, "parameters": self.function.parameters or NO_PARAMETERS}}


NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class FunctionName(Part):
    """A function by its name."""

    name: Name


class NamedTool(Part):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class CalledFunction(Part):
    """What an earlier answer called; its arguments are JSON."""

    name: Name
    arguments: Long


class ToolCall(Part):
    """A call of an earlier answer."""

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None

    def plain(self) -> dict[str, Any]:
        """The call as chat templates take it. ValueError where its arguments are no JSON object."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise ValueError(f"the arguments of the call {self.id[:80]!r} are no JSON object: send what was answered")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}
