"""An OpenAI-compatible server: each request is repeated until the answer is complete, or the tries are used up.

A truncated answer counts as a lost connection. Messages from the server are shown in one line without secrets (see
`secret`), and every call ends (see `calls`).
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
LONGER = 4  # times the longest silence: the limit of a whole call
LONGEST_WAIT = 120.0  # seconds: the limit of Retry-After
GROWTH = 4  # doublings of the first wait, at most
LISTED = 16 << 20  # bytes of a list of models, at most
FRAME = 4 << 20  # bytes of an answer besides its tokens, at most,
TOKEN = 1 << 10  # and of a token, or one of the likeliest at its place
KEY = "set OPENAI_API_KEY to a key that it takes"
MENDS = {401: KEY, 403: KEY, 404: "check --url, which mostly ends in /v1"}
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # fields where servers put the model's thoughts

Part = TypeVar("Part")


class Refused(UserError):
    """The server understands the request and refuses it for good, with `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Choice:
    """An answer of the model.

    `finish_reason` is "eos", "length" or, if the answer is not entirely the model's, the server's reason. `thoughts`
    precede the answer, if the server sends them separately. `tokens`: how many the model wrote, and `hidden`: how many
    of them are thoughts, as the server counts; None if it does not.
    """

    text: str
    finish_reason: str
    logprobs: Any = None
    thoughts: str = ""
    tokens: int | None = None
    hidden: int | None = None

    @property
    def whole(self) -> bool:
        """Whether this is the model's answer, up to its end or to the limit of tokens."""
        return self.finish_reason in ("eos", "length")


class Server:
    """The server at `url` (".../v1"); the key is OPENAI_API_KEY, where that is set.

    A failed call is repeated up to `retries` times: after `wait` seconds at first and twice as long each time, or when
    the server asks for it. `timeout` limits a silence, in seconds; a whole call may take four times as long. Methods
    raise UserError for a server that is down, too slow, or sends truncated or endless answers, and Refused for a
    request that it refuses. Many threads may call at once.
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
        """The model's next message. `what` names the request in errors."""
        return self._post("chat/completions", what, options, lambda choice: choice["message"]["content"])

    def complete(self, what: str, options: dict[str, Any]) -> Choice:
        """The model's continuation of a text, without a template; as `chat`."""
        return self._post("completions", what, options, lambda choice: choice["text"])

    def _post(self, path: str, what: str, options: dict[str, Any], text: Callable[[Any], Any]) -> Choice:
        asked = json.dumps(options).encode()
        most = FRAME + TOKEN * int(options.get("max_tokens", 0)) * (1 + int(options.get("top_logprobs", 0)))
        return self._ask(what, lambda: self._calls.post(path, asked, most), lambda body: self._choice(body, text, what))

    def _ask(self, what: str, call: Callable[[], Reply], part: Callable[[Any], Part]) -> Part:
        """Make `call`, again if need be, and return the `part` of the body; an error in `part` is the body's fault."""
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
        """The server's error as a reason; Refused if a repeated request would fail again."""
        text = reply.body.decode(errors="replace")
        if len(reply.body) >= TOLD:  # cut off, perhaps inside a secret, which could not be recognised
            text = text[: -self.secrets.longest or None]
        reason = f"answers {reply.status} ({self.secrets.line(text)})"
        if reply.status not in AGAIN and reply.status < 500:
            mend = MENDS.get(reply.status, "change the prompt or the option that it names")
            raise Refused(f"the server at --url {self.url} {reason} to {what}: {mend}.", reply.status)
        return reason

    def _choice(self, body: Any, text: Callable[[Any], Any], what: str) -> Choice:
        """The one choice in an answer. Some servers leave out fields that are null."""
        choice = body["choices"][0]
        answer, reason, message = text(choice), choice["finish_reason"], choice.get("message") or {}
        thoughts = next((message[name] for name in THOUGHTS if message.get(name)), "")
        if not (isinstance(answer, str | None) and isinstance(reason, str | None) and isinstance(thoughts, str)):
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
            answer or "",
            str(reason).lower() if meaning == finish.REFUSED else meaning,
            choice.get("logprobs"),
            thoughts,
            written if isinstance(written, int) else None,
            found if isinstance(found := hidden.get("reasoning_tokens"), int) else None,
        )

    def _pause(self, attempt: int, asked_for: str) -> float:
        """Seconds before another try: as the server asks, else twice as long each time, with a random quarter.

        The random part keeps many calls that failed together from being repeated together.
        """
        seconds = _seconds(asked_for)
        if seconds > 0:
            return min(seconds, LONGEST_WAIT)
        return self.wait * 2 ** min(attempt - 1, GROWTH) * (0.75 + 0.25 * random.random())


def _seconds(header: str) -> float:
    """A Retry-After header, in seconds or as a date; 0 for what is neither."""
    try:
        return 0.0 if math.isnan(seconds := float(header)) else seconds
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(header).timestamp() - time.time()
    except (ValueError, OverflowError, OSError):
        return 0.0
