"""Calls to an OpenAI-compatible server: each is tried until it is answered whole, or for good in vain.

An answer that is broken off counts like a lost connection. Whatever a server says is shown in one line without secrets
(see writers.server.secret), and no call lasts for ever (see writers.server.calls).
"""

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.request import getproxies

from sparsedraft.base.errors import UserError
from sparsedraft.writers.server import finish
from sparsedraft.writers.server.calls import TOLD, Calls, Failed, Reply, TooMuch
from sparsedraft.writers.server.secret import Secrets, read_key, secrets_of, shown

AGAIN = (408, 409, 425, 429)  # statuses below 500 that another try may cure
LONGER = 4  # times the longest silence: what a call may take in all
LONGEST_WAIT = 120.0  # seconds: what a server may ask for as Retry-After
GROWTH = 4  # doublings of the first wait, at most
LISTED = 16 << 20  # bytes of a list of models, at most
FRAME = 4 << 20  # bytes of an answer but for its tokens, at most,
TOKEN = 1 << 10  # and of a token, or one of the likeliest at its place
KEY = "set OPENAI_API_KEY to a key that it takes"
MENDS = {401: KEY, 403: KEY, 404: "check --url, which mostly ends in /v1"}
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # where servers put what a model thinks before it answers

Part = TypeVar("Part")


class Refused(UserError):
    """The server has understood the request and will not serve it, however often it is asked: it answers `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Choice:
    """What a model said.

    `finish_reason` is "eos", "length" or, where the answer is not the model's whole own, the server's word for why.
    `thoughts`: what it thought before, where the server sends that apart. `tokens`: how many it wrote, and `hidden`:
    how many of them it thought, as the server counts them; None where it does not.
    """

    text: str
    finish_reason: str
    logprobs: Any = None
    thoughts: str = ""
    tokens: int | None = None
    hidden: int | None = None

    @property
    def whole(self) -> bool:
        """Whether this is what the model wrote, to its end or to the longest answer."""
        return self.finish_reason in ("eos", "length")


class Server:
    """The server at `url` (".../v1"); the key is OPENAI_API_KEY, where that is set.

    A call that fails is made again up to `retries` times, after `wait` seconds at first and twice as long each time,
    or after what the server asks for. `timeout` is the longest silence in seconds; a call takes four times as long at
    most. Its methods raise UserError, in one sentence, for a server that is down, too slow, or answers in halves or
    without end, and Refused for a request that it refuses. Many threads may call at once.
    """

    def __init__(self, url: str, *, timeout: float = 300.0, retries: int = 6, wait: float = 0.5) -> None:
        key = read_key()
        self.url, self.retries, self.wait = shown(url), retries, wait
        self.secrets = Secrets([*([key] if key else []), *secrets_of(url, *getproxies().values())])
        self._calls = Calls(url, key, timeout, LONGER * timeout)

    def models(self) -> list[str]:
        """The names of the models that it serves."""
        return self._ask(
            "the list of models",
            lambda: self._calls.get("models", LISTED),
            lambda body: [str(model["id"]) for model in body["data"]],
        )

    def chat(self, what: str, options: dict[str, Any]) -> Choice:
        """What the model says next. `what` names the request in errors."""
        return self._post("chat/completions", what, options, lambda choice: choice["message"]["content"])

    def complete(self, what: str, options: dict[str, Any]) -> Choice:
        """How the model goes on with a text that no template is applied to; as `chat`."""
        return self._post("completions", what, options, lambda choice: choice["text"])

    def _post(self, path: str, what: str, options: dict[str, Any], text: Callable[[Any], Any]) -> Choice:
        asked = json.dumps(options).encode()
        most = FRAME + TOKEN * int(options.get("max_tokens", 0)) * (1 + int(options.get("top_logprobs", 0)))
        return self._ask(what, lambda: self._calls.post(path, asked, most), lambda body: self._choice(body, text, what))

    def _ask(self, what: str, call: Callable[[], Reply], part: Callable[[Any], Part]) -> Part:
        """The `part` of the body that answers `call`. `part` looks at nothing else: its errors are the body's."""
        reason, asked_for = "", ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self._pause(attempt, asked_for))
            asked_for = ""
            try:
                reply = call()
                if reply.status < 300:
                    return part(json.loads(reply.body))
                reason, asked_for = self._status(reply, what), reply.retry_after
            except Failed as error:
                reason = self.secrets.line(str(error))
            except TooMuch:
                raise UserError(
                    f"the server at --url {self.url} sends more than any answer can have to {what}: see to it and run "
                    "the same command again, finished rows are kept."
                ) from None
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                reason = "sends answers that are not whole"
        times = "once" if self.retries == 0 else f"{self.retries + 1} times"
        raise UserError(
            f"the server at --url {self.url} {reason}, asked {times} for {what}: see to it and run the same command "
            "again, finished rows are kept."
        )

    def _status(self, reply: Reply, what: str) -> str:
        """What the server answers instead of an answer; Refused where it would say the same again."""
        told = reply.body.decode(errors="replace")
        if len(reply.body) >= TOLD:  # cut off there: perhaps within a secret, which would not be known
            told = told[: -self.secrets.longest or None]
        reason = f"answers {reply.status} ({self.secrets.line(told)})"
        if reply.status not in AGAIN and reply.status < 500:
            mend = MENDS.get(reply.status, "change the prompt or the option that it names")
            raise Refused(f"the server at --url {self.url} {reason} to {what}: {mend}.", reply.status)
        return reason

    def _choice(self, body: Any, text: Callable[[Any], Any], what: str) -> Choice:
        """The one choice of an answer. Some servers leave out what is null."""
        choice = body["choices"][0]
        said, reason, message = text(choice), choice["finish_reason"], choice.get("message") or {}
        thoughts = next((message[name] for name in THOUGHTS if message.get(name)), "")
        if not (isinstance(said, str | None) and isinstance(reason, str | None) and isinstance(thoughts, str)):
            raise TypeError
        usage = body.get("usage") or {}
        written, hidden = usage.get("completion_tokens"), (usage.get("completion_tokens_details") or {})
        meaning = finish.meaning(reason)
        if meaning == finish.BROKEN:
            raise Failed(f"breaks its answers off (finish reason {reason})")
        if meaning is None:
            raise UserError(
                f"the server at --url {self.url} ends the answer to {what} with the finish reason "
                f"'{self.secrets.line(str(reason), 40)}', which may mean an end or a cut: use another server."
            )
        return Choice(
            said or "",
            str(reason).lower() if meaning == finish.REFUSED else meaning,
            choice.get("logprobs"),
            thoughts,
            written if isinstance(written, int) else None,
            found if isinstance(found := hidden.get("reasoning_tokens"), int) else None,
        )

    def _pause(self, attempt: int, asked_for: str) -> float:
        """Seconds before another try: what the server asked for, else twice as long each time, a quarter of it chance.

        The chance keeps many calls that failed together from coming back together.
        """
        wanted = _seconds(asked_for)
        if wanted > 0:
            return min(wanted, LONGEST_WAIT)
        return self.wait * 2 ** min(attempt - 1, GROWTH) * (0.75 + 0.25 * random.random())


def _seconds(header: str) -> float:
    """A Retry-After header, in seconds or as a date; 0 for what is neither."""
    try:
        return 0.0 if math.isnan(found := float(header)) else found
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(header).timestamp() - time.time()
    except (ValueError, OverflowError, OSError):
        return 0.0
