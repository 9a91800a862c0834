"""Calls to an OpenAI-compatible server: each is tried until it is answered whole, or for good in vain.

Tries and waits are our own, not the client's, so that a broken body counts like a lost connection.
"""

import json
import os
import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from sparsedraft.errors import UserError

AGAIN = (408, 409, 425, 429)  # statuses below 500 that another try may cure
LONGEST_WAIT = 120.0  # seconds: what a server may ask for as Retry-After
GROWTH = 16  # times the first wait, at most
KEY = "set OPENAI_API_KEY to a key that it takes"
MENDS = {401: KEY, 403: KEY, 404: "check --url, which mostly ends in /v1"}

Part = TypeVar("Part")


class Refused(UserError):
    """The server has understood the request and will not serve it, however often it is asked."""


class Server:
    """The server at `url` (".../v1"); the key is OPENAI_API_KEY, where that is set.

    A call that fails is made again up to `retries` times, after `wait` seconds at first and twice as long each time,
    or after what the server asks for. `timeout` is the longest silence in seconds. Its methods raise UserError, in one
    sentence, for a server that is down, too slow, or answers in halves, and Refused for a request that it refuses.
    Many threads may call at once.
    """

    def __init__(self, url: str, *, timeout: float = 300.0, retries: int = 6, wait: float = 0.5) -> None:
        try:
            import openai
        except ImportError:
            raise UserError(
                "--engine endpoint needs the openai client: install sparsedraft with the extra [endpoint]."
            ) from None
        self.url, self.timeout, self.retries, self.wait, self._openai = url, timeout, retries, wait, openai
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self.client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=0)

    def models(self) -> list[str]:
        """The names of the models that it serves."""
        return self._ask(
            "the list of models",
            self.client.models.with_raw_response.list,
            lambda body: [str(model["id"]) for model in body["data"]],
        )

    def chat(self, what: str, options: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        """What the model says next: {"text", "finish_reason", "logprobs"}. `what` names the request in errors."""
        return self._ask(
            what,
            lambda: self.client.chat.completions.with_raw_response.create(**options, extra_body=extra),
            lambda body: _choice(body, lambda choice: choice["message"]["content"]),
        )

    def complete(self, what: str, options: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        """How the model goes on with a text that no template is applied to; as `chat`."""
        return self._ask(
            what,
            lambda: self.client.completions.with_raw_response.create(**options, extra_body=extra),
            lambda body: _choice(body, lambda choice: choice["text"]),
        )

    def _ask(self, what: str, call: Callable[[], Any], part: Callable[[Any], Part]) -> Part:
        """The `part` of the body that answers `call`. `part` looks at nothing else: its errors are the body's."""
        reason, asked_for = "", ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self._pause(attempt, asked_for))
            asked_for = ""
            try:
                body = call().content
            except self._openai.APITimeoutError:
                reason = f"does not answer within {self.timeout:g} s (--timeout)"
            except self._openai.APIConnectionError as error:
                reason = f"cannot be reached ({error.__cause__ or error})"
            except self._openai.APIStatusError as error:
                said = " ".join(error.response.text.split())[:200]
                reason = f"answers {error.status_code} ({said})"
                if error.status_code not in AGAIN and error.status_code < 500:
                    mend = MENDS.get(error.status_code, "change the prompt or the option that it names")
                    raise Refused(f"the server at --url {self.url} {reason} to {what}: {mend}.") from None
                asked_for = error.response.headers.get("retry-after", "")
            else:
                try:
                    return part(json.loads(body))
                except (ValueError, LookupError, TypeError, AttributeError):
                    reason = "sends answers that are not whole"
        times = "once" if self.retries == 0 else f"{self.retries + 1} times"
        raise UserError(
            f"the server at --url {self.url} {reason}, asked {times} for {what}: see to it and run the same command "
            "again, finished rows are kept."
        )

    def _pause(self, attempt: int, asked_for: str) -> float:
        """Seconds before another try: what the server asked for, else twice as long each time, a quarter of it chance.

        The chance keeps many calls that failed together from coming back together.
        """
        wanted = _seconds(asked_for)
        if wanted > 0:
            return min(wanted, LONGEST_WAIT)
        return self.wait * min(2 ** (attempt - 1), GROWTH) * (0.75 + 0.25 * random.random())


def _choice(body: Any, text: Callable[[Any], Any]) -> dict[str, Any]:
    """The one choice of an answer. Some servers leave out what is null."""
    choice = body["choices"][0]
    said, reason = text(choice), choice["finish_reason"]
    if not isinstance(said, str | None) or not isinstance(reason, str):
        raise TypeError
    return {"text": said or "", "finish_reason": reason, "logprobs": choice.get("logprobs")}


def _seconds(header: str) -> float:
    """A Retry-After header, in seconds or as a date; 0 for what is neither."""
    try:
        return float(header)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(header).timestamp() - time.time()
    except ValueError:
        return 0.0
