"""What the server answers, in OpenAI's forms."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsedraft.speculate.loop.sequence import Step

FINISHED = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}  # OpenAI's reasons by the loop's
CALLED = "tool_calls"  # the reason of an answer that ends with a call


@dataclass
class Written:
    """One answer as far as it is written: its text, what ended it, and how it was drafted."""

    text: str = ""
    reason: str | None = None
    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: list[int] = field(default_factory=list)  # by steps with drafts
    calls: list[dict[str, Any]] = field(default_factory=list)  # of functions, in OpenAI's form
    logprobs: dict[str, Any] = field(default_factory=dict)  # of all tokens, in the request's form; {}: not asked for

    def add(self, step: Step, text: str, logprobs: dict[str, Any] | None) -> None:
        self.text += text
        for name, values in (logprobs or {}).items():
            self.logprobs[name] = values if values is None else [*self.logprobs.get(name, []), *values]
        self.tokens += len(step.emitted)
        self.steps += 1
        if step.drafted:
            self.drafted += len(step.drafted)
            self.accepted.append(step.accepted)
        self.reason = FINISHED[step.finish_reason] if step.finish_reason else None

    def metrics(self) -> dict[str, Any]:
        """How well drafts did: the mean acceptance length counts the target's own token; the histogram is by place."""
        longest = max(self.accepted, default=0)
        return {
            "num_tokens": self.tokens,
            "num_drafts": len(self.accepted),
            "num_draft_tokens": self.drafted,
            "num_accepted_tokens": sum(self.accepted),
            "mean_acceptance_length": self.tokens / max(1, self.steps),
            "acceptance_rate": sum(self.accepted) / self.drafted if self.drafted else 0.0,
            "accepted_per_position": [sum(a > place for a in self.accepted) for place in range(longest)],
        }


@dataclass(frozen=True)
class Form:
    """The names that differ between chats and plain completions."""

    prefix: str
    whole: str
    chunk: str
    chat: bool


CHAT = Form("chatcmpl", "chat.completion", "chat.completion.chunk", True)
COMPLETION = Form("cmpl", "text_completion", "text_completion", False)


class Reply:
    """Makes the bodies of one reply."""

    def __init__(self, form: Form, model: str) -> None:
        self.form = form
        self._head = {"id": f"{form.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answers: Sequence[Written], usage: dict[str, Any], metrics: bool) -> dict[str, Any]:
        """The body of a reply that is not streamed."""
        choices = []
        for index, answer in enumerate(answers):
            message: dict[str, Any] = {"role": "assistant", "content": answer.text}
            if answer.calls:
                message = {"role": "assistant", "content": answer.text or None, "tool_calls": answer.calls}
            said: dict[str, Any] = {"message": message} if self.form.chat else {"text": answer.text}
            logprobs = answer.logprobs or None
            choices.append({"index": index, **said, "logprobs": logprobs, "finish_reason": answer.reason})
        return {
            **self._head, "object": self.form.whole, "choices": choices, "usage": usage, **told(answers, metrics),
        }  # fmt: skip

    def first(self, index: int) -> dict[str, Any]:
        """The chunk that begins an answer of a chat."""
        return self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def piece(
        self,
        index: int,
        text: str,
        reason: str | None,
        logprobs: dict[str, Any] | None,
        from_drafts: str | None,
        calls: Sequence[dict[str, Any]] = (),
    ) -> dict[str, Any]:
        """A chunk of text and of calls; `from_drafts`: its beginning that accepted drafts wrote, where that is asked
        for."""
        delta = ({"content": text} if text else {}) | ({"tool_calls": [*calls]} if calls else {})
        said: dict[str, Any] = {"delta": delta} if self.form.chat else {"text": text}
        extra = {} if from_drafts is None else {"from_drafts": from_drafts}
        return self._chunk([{"index": index, **said, "logprobs": logprobs, "finish_reason": reason, **extra}])

    def last(self, usage: dict[str, Any] | None, answers: Sequence[Written], metrics: bool) -> dict[str, Any] | None:
        """The chunk behind all text, where one was asked for."""
        if usage is None and not metrics:
            return None
        return {**self._chunk([]), **({"usage": usage} if usage else {}), **told(answers, metrics)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self.form.chunk, "choices": choices}


def told(answers: Sequence[Written], metrics: bool) -> dict[str, Any]:
    """The part of a reply that says how drafts did, an object for each answer, where that was asked for."""
    return {"metrics": {"speculative_decoding": [answer.metrics() for answer in answers]}} if metrics else {}


def usage(prompt: int, cached: int, answers: Sequence[Written]) -> dict[str, Any]:
    """The tokens of a reply: of its prompts, of which `cached` were not read again, and of its answers."""
    completion = sum(answer.tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def error(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error's body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
