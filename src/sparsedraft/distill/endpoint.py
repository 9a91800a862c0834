"""Engine `endpoint`: any OpenAI-compatible server (vLLM, SGLang, llama.cpp, `transformers serve`, ...).

A request is one HTTP call; how many are under way at once is the caller's choice (one engine serves many threads).
Retries with exponential back-off, `Retry-After` and time-outs are the openai client's own.
"""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft import prompts
from sparsedraft.errors import UserError
from sparsedraft.generation import Output, Request
from sparsedraft.packing import Sample
from sparsedraft.speculate.sampling import Sampling

UNKNOWN = -1e4  # log-probability of a token at a place of which the server said nothing; exp of it is 0


class EndpointEngine:
    """The model `served` at `url` (".../v1"), whose tokenizer is `tokenizer`.

    Raises UserError, one sentence each, for a server that is down, does not answer in `timeout` seconds after
    `retries` more tries, refuses a request, or serves another model.
    """

    name = "endpoint"

    def __init__(
        self,
        url: str,
        served: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        timeout: float = 300.0,
        retries: int = 6,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise UserError(
                "--engine endpoint needs the openai client: install sparsedraft with the extra [endpoint]."
            ) from None
        self.url, self.served, self.tokenizer, self.retries = url, served, tokenizer, retries
        self.end = prompts.end_of_turn(tokenizer)
        self.eos_ids = frozenset([*self.end, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])])
        self._errors = openai
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self.client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=retries)
        self._check()

    def _check(self) -> None:
        """That the server is there and serves the model."""
        names = [model.id for model in self._ask("the list of models", lambda: self.client.models.list()).data]
        if self.served not in names:
            raise UserError(
                f"the server at {self.url} serves {', '.join(names[:5]) or 'nothing'}, not {self.served}: give one of "
                "its names as --served-name, or start it with the target."
            )

    def generate(self, requests: Sequence[Request], sampling: Sampling, top_k_logprobs: int = 0) -> Iterator[Output]:
        """One call for each request, in their order."""
        for request in requests:
            yield self._raw(request, sampling) if request.raw else self._chat(request, sampling, top_k_logprobs)

    def score(self, samples: Sequence[Sample], k: int) -> list[tuple[list[int], list[float]]]:
        """No server is asked to score text that it did not write."""
        raise UserError(
            "--engine endpoint gives log-probabilities of what the server writes only, not of rewritten answers: leave "
            "out --top-k-logprobs, or use --engine transformers."
        )

    def _options(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        found: dict[str, Any] = {
            "model": self.served,
            "max_tokens": request.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed % 2**31,  # some servers hold it in 32 bits
        }
        return found | ({"extra_body": {"top_k": sampling.top_k}} if sampling.top_k else {})

    def _chat(self, request: Request, sampling: Sampling, k: int) -> Output:
        options = self._options(request, sampling)
        if k:
            options |= {"logprobs": True, "top_logprobs": k}
            extra = {**options.get("extra_body", {}), "return_tokens_as_token_ids": True}  # vLLM; others ignore it
            options["extra_body"] = extra
        chat: Any = request.messages
        choice = self._choice(request, lambda: self.client.chat.completions.create(messages=chat, **options))
        output = self._output(request, choice.message.content or "", choice.finish_reason)
        if k:
            self._add_logprobs(output, choice.logprobs, k)
        return output

    def _raw(self, request: Request, sampling: Sampling) -> Output:
        options = self._options(request, sampling)
        choice = self._choice(request, lambda: self.client.completions.create(prompt=request.raw, **options))
        return self._output(request, choice.text, choice.finish_reason)

    def _choice(self, request: Request, call: Callable[[], Any]) -> Any:
        return self._ask(f"prompt {request.id}", lambda: call().choices[0])

    def _output(self, request: Request, text: str, reason: str | None) -> Output:
        """The answer in the target's tokens: re-encoded, for servers send text."""
        ids = [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        ended = reason == "stop"
        return Output(request.id, [*ids, *self.end] if ended else ids, "eos" if ended else "length")

    def _add_logprobs(self, output: Output, logprobs: Any, k: int) -> None:
        """The server's own tokens and log-probabilities in place of the re-encoded ones.

        Nothing is added where one of its tokens has no id of its own in the vocabulary (part of a character, say). The
        end-of-turn token, if the server does not report on it, gets k times UNKNOWN: it is learnt by NLL only.
        """
        content = getattr(logprobs, "content", None)
        if not content:
            raise UserError(
                f"the server at {self.url} returns no log-probabilities: leave out --top-k-logprobs, or use another."
            )
        ids = [self._id(place.token) for place in content]
        best = [[(self._id(t.token), t.logprob) for t in place.top_logprobs[:k]] for place in content]
        if None in ids or any(len(place) < k or None in (i for i, _ in place) for place in best):
            return
        output.topk_ids = [[int(i) for i, _ in place] for place in best]  # type: ignore[arg-type]
        output.topk_logprobs = [[max(p, UNKNOWN) for _, p in place] for place in best]
        output.token_ids = [int(i) for i in ids if i is not None]
        if output.finish_reason == "eos" and output.token_ids[-1] not in self.eos_ids and self.end:
            output.token_ids.append(self.end[0])
            output.topk_ids.append(list(range(k)))
            output.topk_logprobs.append([UNKNOWN] * k)

    def _id(self, token: str) -> int | None:
        """The id of a token as the server writes it: "token_id:17", or the text that it stands for."""
        if token.startswith("token_id:"):
            return int(token.removeprefix("token_id:"))
        return self._ids_by_text.get(token)

    @cached_property
    def _ids_by_text(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for i in range(len(self.tokenizer)):
            text = str(self.tokenizer.decode([i]))
            found[text] = None if text in found else i  # two of one text cannot be told apart
        return found

    def _ask(self, what: str, call: Callable[[], Any]) -> Any:
        """The result of `call`; a body that is no JSON or lacks its parts is asked for again like a lost connection."""
        e = self._errors
        for attempt in range(self.retries + 1):
            try:
                return call()
            except (ValueError, LookupError, TypeError, AttributeError, e.APIResponseValidationError) as error:
                broken = f"sends answers that are not whole ({type(error).__name__})"
                time.sleep(min(8.0, 0.5 * 2**attempt) * (0.75 + 0.25 * random.random()))
            except e.APITimeoutError:
                raise self._lost(what, f"does not answer within {self.client.timeout:g} s") from None
            except e.APIConnectionError as error:
                raise self._lost(what, f"cannot be reached ({error.__cause__ or error})") from None
            except e.APIStatusError as error:
                reason = f"answers {error.status_code} ({str(error.message)[:200]})"
                if error.status_code in (408, 409, 429) or error.status_code >= 500:
                    raise self._lost(what, reason) from None
                raise UserError(f"the server at {self.url} refuses {what}: it {reason}.") from None
        raise self._lost(what, broken)

    def _lost(self, what: str, reason: str) -> UserError:
        return UserError(
            f"the server at {self.url} {reason}, asked {self.retries + 1} times for {what}: mend it and run the same "
            "command again, finished rows are kept."
        )
