"""The form that a request asks of its answers: a grammar for each, and how its calls are read."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparsedraft.base.errors import UserError
from sparsedraft.serve import schemas, tools
from sparsedraft.serve.calls import CallReader
from sparsedraft.serve.grammar import Grammars, TextGrammar, Unmade
from sparsedraft.serve.refused import Refused
from sparsedraft.serve.requests import ChatRequest, CompletionRequest
from sparsedraft.serve.structure import NO_PARAMETERS, Function, JsonObject, JsonSchema, NamedTool, Tool
from sparsedraft.writers.loaded import LoadedModel

SCHEMA = "response_format.json_schema.schema"
LARGEST = 256 << 10  # characters of all schemas of a request together


@dataclass(frozen=True)
class AnswerForm:
    """Makes for each answer its grammar, and what reads its calls; None where there is none."""

    grammar: Callable[[], TextGrammar | None] = lambda: None
    reader: Callable[[], CallReader | None] = lambda: None


ANY = AnswerForm()


class Forms:
    """What the answers of `target`, which clients call `name`, can be held to."""

    def __init__(self, target: LoadedModel, name: str) -> None:
        self._tokenizer, self._name = target.tokenizer, name
        self._grammars = Grammars(target.tokenizer, target.width, target.eos_ids)

    async def of(self, request: ChatRequest | CompletionRequest) -> AnswerForm:
        """The form of the answers to a request. Refused where it cannot be held exactly."""
        if not isinstance(request, ChatRequest):
            return ANY
        if request.tools:
            calling = await self._calling(request)
            grammar = await self._grammar(lambda: tools.grammar(calling), "tools")
            return AnswerForm(grammar, lambda: CallReader(calling))
        schema, field = await asyncio.to_thread(_answer, request)
        return ANY if schema is None else AnswerForm(await self._grammar(lambda: _json(schema), field))

    async def _calling(self, request: ChatRequest) -> tools.Calling:
        """How the answers to a request with tools may call. Where they may as well be JSON, that is told from a call by
        its beginning."""
        form, forced = await asyncio.to_thread(self._call_form), request.tool_choice != "auto"
        functions = await asyncio.to_thread(_functions, request)
        answer, field = await asyncio.to_thread(_answer, request)
        calling = tools.Calling(form, functions, forced, request.parallel_tool_calls, answer)
        if forced or answer is None:
            return calling
        fresh = await self._grammar(lambda: _json(answer), field)
        alike = await asyncio.to_thread(self._alike, fresh(), calling)
        if alike and not form.begin:
            told = f"{field} allows what begins as a call of {alike}, which this model writes as an object, too"
            raise Refused(f"{told}: leave tools or response_format out, or change the schema.", field)
        return replace(calling, untagged=not alike)

    def _alike(self, grammar: TextGrammar, calling: tools.Calling) -> str:
        """A function whose call may begin as a text of `grammar`; "": none."""
        for name in calling.names:
            for key in ("arguments", "parameters"):
                ids = self._tokenizer(f'{{"name": "{name}", "{key}":', add_special_tokens=False)["input_ids"]
                if grammar.follows(ids):
                    return name
        return ""

    def check_history(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Refused where the messages hold calls that the template would leave out."""
        try:
            tools.check_history(self._tokenizer, messages)
        except tools.Unshown as error:
            raise self._unshown(str(error), "messages", "send messages without tool_calls") from None

    def _call_form(self) -> tools.CallForm:
        try:
            return tools.form_of(self._tokenizer)
        except tools.Unshown as error:
            raise self._unshown(str(error), "tools", "leave tools out") from None
        except UserError as error:
            raise Refused(str(error).replace(str(self._tokenizer.name_or_path), self._name), "messages") from None

    def _unshown(self, what: str, param: str, mend: str) -> Refused:
        return Refused(f"the chat template of {self._name} {what}: {mend}, or serve another model.", param)

    async def _grammar(self, write: Callable[[], str], field: str) -> Callable[[], TextGrammar]:
        """What makes grammars of the text that `write` writes, aside: a large one takes its time."""
        text = await asyncio.to_thread(write)
        if len(text) > LARGEST:
            raise Refused(f"{field} has more than {LARGEST >> 10} KiB of schemas: send smaller ones.", field)
        try:
            return await self._grammars.make(text)
        except TimeoutError:
            raise Refused(f"{field} takes too long to compile: send a simpler schema.", field) from None
        except Unmade as error:
            raise Refused(f"{field} cannot be enforced here ({error}): send a simpler schema.", field) from None


def _functions(request: ChatRequest) -> list[tuple[Function, Any]]:
    """The functions that may be called, each with the schema of its arguments as llguidance holds it."""
    choice = request.tool_choice
    named = choice.function.name if isinstance(choice, NamedTool) else None
    found = [(i, tool) for i, tool in enumerate(request.tools) if named in (None, tool.function.name)]
    return [(tool.function, _parameters(i, tool)) for i, tool in found]


def _parameters(index: int, tool: Tool) -> Any:
    field = f"tools.{index}.function.parameters"
    schema = tool.function.parameters or NO_PARAMETERS
    if schema.get("type") != "object":
        raise Refused(f"{field} is of no object: give it the type 'object'.", field)
    return _prepared(schema, field)


def _answer(request: ChatRequest) -> tuple[dict[str, Any] | None, str]:
    """(what an answer that calls nothing has to satisfy, as llguidance holds it, the field that says so); None: any
    text."""
    asked = request.response_format
    if isinstance(asked, JsonObject):
        return _prepared({"type": "object"}, "response_format"), "response_format"
    return (_prepared(asked.json_schema.schema_, SCHEMA), SCHEMA) if isinstance(asked, JsonSchema) else (None, "")


def _json(schema: Mapping[str, Any]) -> str:
    return f"start: %json {json.dumps(schema)}"


def _prepared(schema: Mapping[str, Any], field: str) -> dict[str, Any]:
    try:
        return schemas.prepared(schema, field)
    except schemas.Unheld as error:
        raise Refused(str(error), field) from None
