"""From a checked request to jobs, and from their steps to text: what lies between the web and the engine."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sparsedraft.base.errors import UserError
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.infilling import Infilling
from sparsedraft.serve.engine import Engine, Job
from sparsedraft.serve.forms import ANY, AnswerForm, Forms
from sparsedraft.serve.logprobs import Tokens, of_chat, of_completion
from sparsedraft.serve.memory import check_fit
from sparsedraft.serve.refused import Refused
from sparsedraft.serve.replies import CALLED, Written
from sparsedraft.serve.requests import Asked, ChatRequest, CompletionRequest
from sparsedraft.speculate.loop.sequence import Step
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.stages.generate.texts import TextStream

ALONE = "none"  # as the draft_model of a request: the target alone


@dataclass(frozen=True)
class Names:
    """What clients call the models; of the drafters the first is the default. Without any the target decodes alone."""

    target: str
    loaded: tuple[str, ...] = ()

    @property
    def drafters(self) -> list[str]:
        """What a request may name as its draft_model."""
        return [ALONE, *self.loaded]

    def drafter(self, asked: str | None) -> str | None:
        """Who drafts for a request that asks for this draft_model; None: nobody."""
        if asked == ALONE or not self.loaded:
            return None
        return asked or self.loaded[0]


@dataclass(frozen=True)
class Piece:
    """What a step adds to the answer `index`: its text, and the beginning of it that accepted drafts wrote.

    `logprobs`: in the request's form, of its tokens; None where they are not asked for. `calls`: what it adds to the
    answer's calls of functions, in OpenAI's form of deltas.
    """

    index: int
    text: str
    from_drafts: str
    logprobs: dict[str, Any] | None
    calls: Sequence[dict[str, Any]] = ()


class Service:
    """Answers requests with an engine, whose decoder is of `pairs`: the target with each drafter, by their names, and
    alone as None."""

    def __init__(
        self, pairs: Mapping[str | None, Pair], engine: Engine, names: Names, most_tokens: int, seeded_k: int
    ) -> None:
        self.pairs, self.pair, self.engine, self.names = pairs, pairs[None], engine, names
        self.most_tokens, self.seeded_k = most_tokens, seeded_k
        self.tokens = Tokens(self.pair.target.tokenizer)
        self.forms = Forms(self.pair.target, names.target)

    def prompts(self, request: ChatRequest | CompletionRequest) -> list[PromptPair]:
        """Each prompt, as the target and as the request's drafter read it. Refused for what the template or the model
        does not know, or has no room for."""
        tokenizer = self.pair.target.tokenizer
        try:
            if isinstance(request, ChatRequest):
                self._check_template(request)
                messages, tools = [message.plain() for message in request.messages], request.tools
                self.forms.check_history(messages)
                found = [templates.chat_ids(tokenizer, messages, tools=[tool.plain() for tool in tools])]
            else:
                found = [self._ids(prompt, request.suffix) for prompt in request.prompts]
        except UserError as error:  # which calls the model by its place on this machine
            field = "messages" if isinstance(request, ChatRequest) else "suffix"
            raise Refused(str(error).replace(str(tokenizer.name_or_path), self.names.target), field) from None
        field, context = "messages" if isinstance(request, ChatRequest) else "prompt", self.pair.target.context
        for ids in found:
            if not ids:
                raise Refused(f"{field} has no token: write something.", field)
            if max(ids) >= self.pair.target.embedding_rows:
                raise Refused(f"{field} holds the token {max(ids)}, which the model does not have.", field)
            if context is not None and len(ids) >= context:
                told = f"{field} has {len(ids)} tokens, which fill the context of {context}: shorten it."
                raise Refused(told, field, "context_length_exceeded")
        pair, plain = self.pairs[self.names.drafter(request.draft_model)], None
        if isinstance(request, ChatRequest) and not request.tools:  # which the drafter's template may not know
            plain = [message.plain() for message in request.messages]
        return [pair.prompt_pair(ids, plain) for ids in found]

    def _check_template(self, request: ChatRequest) -> None:
        """Refused where the request sets what the chat template gets otherwise than the server does."""
        own = templates.for_server(self.pair.target.tokenizer).get("chat_template_kwargs", {})
        for name, value in (request.chat_template_kwargs or {}).items():
            if name not in own or own[name] != value:
                told = f"chat_template_kwargs sets {name[:80]!r}, which this server sets: leave it out."
                raise Refused(told, "chat_template_kwargs")

    @cached_property
    def infilling(self) -> Infilling:
        """How the model fills in the middle of a text. UserError where it cannot."""
        return Infilling(self.pair.target.tokenizer)

    def _ids(self, prompt: str | list[int], suffix: str | None) -> list[int]:
        """A prompt's ids. Control tokens that it spells are those tokens, but beside a suffix they are text."""
        if not isinstance(prompt, str):
            return prompt
        if suffix:
            return self.infilling.ids(prompt, suffix)
        return [int(number) for number in self.pair.target.tokenizer(prompt)["input_ids"]]

    def stops(self, request: Asked) -> Stops | None:
        """What ends an answer; None: nothing but the model itself."""
        infills = isinstance(request, CompletionRequest) and bool(request.suffix)
        strings = [*request.stops, *(self.infilling.ends if infills else ())]
        return Stops(self.pair.target.tokenizer, strings) if strings else None

    def check_names(self, request: Asked) -> None:
        """Refused where the request names a model that is not served."""
        if request.model != self.names.target:
            told = f"model {request.model[:80]!r} is not served here: there is {self.names.target}."
            raise Refused(told, "model", "model_not_found", 404)
        known = self.names.drafters
        if request.draft_model is not None and request.draft_model not in known:
            told = f"draft_model {request.draft_model[:80]!r} is not loaded: choose one of {', '.join(known)}."
            raise Refused(told, "draft_model")

    def begin(
        self, request: ChatRequest | CompletionRequest, prompts: Sequence[PromptPair], form: AnswerForm = ANY
    ) -> "Answers":
        """Let the answers be written, in `form`; Full or Stopped where they cannot, Refused where they never could."""
        count, most = len(prompts) * request.n, self.engine.rows + self.engine.queue
        if count > most:
            told = f"the request asks for {count} answers, and {most} can run and wait here: ask for fewer."
            raise Refused(told, "n")
        self._check_memory(request, [prompt for prompt in prompts for _ in range(request.n)])
        return Answers(self, request, prompts, form)

    def most_of(self, request: Asked) -> int:
        """Tokens of an answer, at most."""
        most = request.most_tokens
        return self.most_tokens if most is None else min(most, self.most_tokens)

    def _check_memory(self, request: Asked, prompts: Sequence[PromptPair]) -> None:
        """Refused where keys and values of the answers, as many as are written at once, do not fit in what is free now:
        the answers under way would end with these."""
        drafter = self.names.drafter(request.draft_model)
        longest = sorted(prompts, key=lambda prompt: len(prompt.target))[-self.engine.rows :]
        try:
            check_fit(self.engine.decoder, self.pairs[drafter], drafter, longest, self.most_of(request))
        except UserError as error:
            raise Refused(str(error), code="insufficient_memory", status=503) from None

    def drafted(self, request: Asked) -> int | None:
        """How many tokens are drafted a step for a request; None: as the policy says."""
        if self.names.drafter(request.draft_model) is None:
            return 0
        if request.num_draft_tokens is not None:
            return request.num_draft_tokens
        return self.seeded_k if request.repeats else None


class Answers:
    """The answers to one request, n for each of its prompts, as they are written; in an event loop."""

    def __init__(
        self,
        service: Service,
        request: ChatRequest | CompletionRequest,
        prompts: Sequence[PromptPair],
        form: AnswerForm = ANY,
    ) -> None:
        self.service, self.written = service, [Written() for _ in range(len(prompts) * request.n)]
        tokenizer = service.pair.target.tokenizer
        stops = service.stops(request)
        self._streams = [TextStream(tokenizer, stops) for _ in self.written]
        self._request, self._form = request, form
        self._readers = [form.reader() for _ in self.written]
        self._steps: asyncio.Queue[tuple[int, Step | Exception | None]] = asyncio.Queue()
        self._loop, tokens = asyncio.get_running_loop(), service.most_of(request)
        self.jobs = [
            self._job(index, prompt, seed, tokens, stops)
            for index, (prompt, seed) in enumerate((prompt, seed) for prompt in prompts for seed in request.seeds())
        ]
        service.engine.submit(self.jobs)

    def _job(self, index: int, prompt: PromptPair, seed: int, tokens: int, stops: Stops | None) -> Job:
        request, k, on_step = self._request, self.service.drafted(self._request), self._hand_over(index)
        drafter = self.service.names.drafter(request.draft_model)
        grammar = self._form.grammar()
        return Job(
            prompt.target, tokens, seed, request.sampling, stops, k, on_step, request.likeliest, drafter, grammar,
            prompt.drafter,
        )  # fmt: skip

    def _hand_over(self, index: int) -> Callable[[Step | Exception | None], None]:
        """Passes steps from the engine's thread to this loop. It does not hold the answers: in a circle with their jobs
        they would stay in memory until Python looks for such circles, which is seldom."""
        loop, steps = self._loop, self._steps

        def on_step(step: Step | Exception | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(steps.put_nowait, (index, step))

        return on_step

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all answers as they come. Raises what ended one of them; left early, all are given up."""
        open_ = len(self.jobs)
        try:
            while open_:
                index, step = await self._steps.get()
                if isinstance(step, Exception):
                    raise step
                if step is None:
                    open_ -= 1
                    continue
                stream = self._streams[index]
                from_drafts, own = stream.parts(step)
                if step.finish_reason:
                    own += stream.rest()
                told = self._logprobs(step, len(self.written[index].text))
                yield self._piece(index, step, (from_drafts, own), told)
        finally:
            if open_:
                self.give_up()

    def _piece(self, index: int, step: Step, parts: tuple[str, str], told: dict[str, Any] | None) -> Piece:
        """The piece of a step that adds these `parts`, by drafts and by the target; it is written down, too."""
        (from_drafts, own), written, reader = parts, self.written[index], self._readers[index]
        text, calls = from_drafts + own, list[dict[str, Any]]()
        if reader is not None:
            text, calls = reader.more(text, last=bool(step.finish_reason))
            written.calls = reader.calls
        written.add(step, text, told)
        if reader is not None and reader.called and step.finish_reason == "eos":
            written.reason = CALLED
        return Piece(index, text, from_drafts if text.startswith(from_drafts) else "", told, calls)

    def _logprobs(self, step: Step, begin: int) -> dict[str, Any] | None:
        if self._request.likeliest is None:
            return None
        if isinstance(self._request, ChatRequest):
            return of_chat(self.service.tokens, step.emitted, step.logprobs)
        return of_completion(self.service.tokens, step.emitted, step.logprobs, begin)

    def give_up(self) -> None:
        """Write no more."""
        for job in self.jobs:
            self.service.engine.give_up(job)

    @property
    def cached(self) -> int:
        """Tokens of the prompts that had been read before, each prompt counted once."""
        return sum(job.cached for job in self.jobs[:: self._request.n])
