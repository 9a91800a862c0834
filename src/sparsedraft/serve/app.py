"""The web application: OpenAI's paths, health, and metrics."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from functools import partial
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from sparsedraft.serve import replies
from sparsedraft.serve.description import (
    GUARDED,
    REFUSALS,
    ChatReply,
    CompletionReply,
    Health,
    Model,
    Models,
    answers,
    describe,
    failures,
)
from sparsedraft.serve.engine import Full, GrammarFailed, Stopped
from sparsedraft.serve.guard import HEALTH, Guard, refusal
from sparsedraft.serve.refused import Refused
from sparsedraft.serve.replies import CHAT, COMPLETION, Form, Reply
from sparsedraft.serve.requests import ChatRequest, CompletionRequest, sentence
from sparsedraft.serve.service import Answers, Service

RETRY = "1"  # seconds after which a client may ask again where the queue was full
PAGE = {
    "/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript"),
}  # fmt: skip
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
WATCHED = 0.25  # seconds between two looks whether a client is still there


def application(service: Service, api_key: str | None, hosts: tuple[str, ...]) -> FastAPI:
    """The application. `api_key`: what clients must send; `hosts`: the names by which they may call this server."""
    app = FastAPI(title="sparsedraft", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, api_key=api_key, hosts=hosts)
    _handle_errors(app)
    describe(app, service.names)
    started = int(time.time())

    for path, (name, kind) in PAGE.items():
        app.add_api_route(path, partial(_file, name, kind), include_in_schema=False)

    failed = {503: {"model": Health, "description": "The server decodes no more."}}

    @app.get(HEALTH, response_model=Health, responses=failed)  # type: ignore[arg-type]
    async def health() -> JSONResponse:
        alive = service.engine.alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses=failures(GUARDED))
    async def metrics() -> str:
        engine = service.engine
        return engine.counters.text(num_requests_running=engine.running, num_requests_waiting=engine.waiting)

    @app.get("/v1/models", response_model=Models, responses=failures(GUARDED))
    async def models() -> dict[str, Any]:
        names = service.names
        about = {"object": "model", "created": started, "owned_by": "sparsedraft", "draft_models": names.drafters}
        return {"object": "list", "data": [{"id": names.target, **about}]}

    @app.get("/v1/models/{name:path}", response_model=Model, responses=failures(GUARDED | {404: REFUSALS[404]}))
    async def model(name: str) -> Any:
        if name != service.names.target:
            told = f"model {name[:80]!r} is not served here: there is {service.names.target}."
            return refusal(told, 404, "model", "model_not_found")
        return (await models())["data"][0]

    @app.post("/v1/chat/completions", response_model=ChatReply, responses=answers(ChatReply))
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _answer(service, body, request, CHAT)

    @app.post("/v1/completions", response_model=CompletionReply, responses=answers(CompletionReply))
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await _answer(service, body, request, COMPLETION)

    return app


async def _file(name: str, kind: str) -> Response:
    """A file of the page, which loads nothing from elsewhere."""
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    text = resources.files("sparsedraft.serve").joinpath(name).read_text(encoding="utf-8")
    return Response(text, media_type=kind, headers=headers)


async def _answer(service: Service, body: ChatRequest | CompletionRequest, request: Request, form: Form) -> Response:
    service.check_names(body)
    prompts = await asyncio.to_thread(service.prompts, body)  # a long text takes its time
    answers = service.begin(body, prompts, await service.forms.of(body))
    reply, count = Reply(form, service.names.target), sum(len(prompt.target) for prompt in prompts)
    if body.stream:
        events = _events(answers, reply, body, count)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    watch = asyncio.create_task(_watch(request, answers))
    try:
        async for _ in answers.pieces():
            pass
    finally:
        watch.cancel()
    used = replies.usage(count, answers.cached, answers.written)
    return JSONResponse(reply.whole(answers.written, used, body.include_metrics))


async def _watch(request: Request, answers: Answers) -> None:
    """Give the answers up once nobody waits for them."""
    while not await request.is_disconnected():
        await asyncio.sleep(WATCHED)
    answers.give_up()


async def _events(
    answers: Answers, reply: Reply, body: ChatRequest | CompletionRequest, count: int
) -> AsyncIterator[bytes]:
    """The events of a streamed reply. A client that goes away closes this, which gives the answers up."""
    try:
        if reply.form.chat:
            for index in range(len(answers.written)):
                yield _event(reply.first(index))
        async for piece in answers.pieces():
            reason = answers.written[piece.index].reason
            if piece.text or reason or piece.logprobs or piece.calls:
                drafts = piece.from_drafts if body.include_metrics else None
                yield _event(reply.piece(piece.index, piece.text, reason, piece.logprobs, drafts, piece.calls))
    except Exception as error:  # the status has been sent: the last event says what happened
        yield _event(replies.error(_told(error), "server_error"))
        return
    finally:  # also where it is closed before the first piece; of what has ended there is nothing to give up
        answers.give_up()
    usage = body.stream_options is not None and body.stream_options.include_usage
    used = replies.usage(count, answers.cached, answers.written) if usage else None
    if last := reply.last(used, answers.written, body.include_metrics):
        yield _event(last)
    yield b"data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


def _told(error: Exception) -> str:
    """What a client is told of a failure while an answer was written; never a path or a trace."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for this answer: ask for fewer tokens, or for fewer answers at once."
    if isinstance(error, Stopped):
        return "the server is shutting down."
    if isinstance(error, GrammarFailed):
        return f"the answer's grammar could not be followed to its end ({error}): send a simpler schema."
    if isinstance(error, FloatingPointError):
        return "the model's logits are no numbers for this request: ask for milder sampling."
    return "the answer could not be finished."


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        told, field = sentence(error.errors())
        return refusal(told, 400, field or None)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return refusal(error.message, error.status, error.param, error.code)

    @app.exception_handler(Full)
    async def full(_: Request, error: Full) -> JSONResponse:
        told = refusal("too many requests wait already: ask again in a moment.", 429, code="queue_full")
        told.headers["Retry-After"] = RETRY
        return told

    @app.exception_handler(Stopped)
    async def stopped(_: Request, error: Stopped) -> JSONResponse:
        return refusal("the server is shutting down.", 503)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        told = refusal(f"{str(error.detail).lower().rstrip('.')}.", error.status_code)
        told.headers.update(error.headers or {})  # such as the methods that are allowed
        return told

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return refusal(_told(error), 500)
