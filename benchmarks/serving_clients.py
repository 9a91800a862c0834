"""Clients of a server: streamed answers with the seconds to their first text, several clients at once, and metrics."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import httpx2

from sparsedraft.base.errors import UserError

PATIENCE = 600.0  # seconds at most between two pieces of an answer
ROOM = 32  # ids below may be special tokens
BEGUN = 200  # prompts that can begin with a token of their own


@dataclass(frozen=True)
class Endpoint:
    """Where a server writes answers to token ids: its name in messages, address and path, and the fields of a request.

    `limit` is the field for the most tokens of an answer; `error` is what is raised where it does not answer.
    """

    name: str
    address: str
    path: str
    fields: Mapping[str, Any]
    limit: str = "max_tokens"
    error: type[Exception] = UserError

    def body(self, ids: Sequence[int], tokens: int) -> dict[str, Any]:
        """The body of a streamed request."""
        return {**self.fields, "prompt": list(ids), self.limit: tokens, "stream": True}


@dataclass(frozen=True)
class Reply:
    """A streamed answer: its tokens, seconds until its end and until its first text, and how many were drafted."""

    tokens: int
    seconds: float
    first: float
    text: str
    drafted: int = 0


@dataclass
class Gathered:
    """What the events of an answer say so far, in OpenAI's form or in that of llama.cpp's /completion."""

    text: str = ""
    tokens: int = 0
    drafted: int = 0
    first: float | None = field(default=None)

    def add(self, event: Mapping[str, Any], seconds: float) -> None:
        """An event that came after so many seconds. ValueError for one that tells of a failure."""
        if error := event.get("error"):
            raise ValueError(error["message"])
        piece = event.get("content") or "".join(map(_said, event.get("choices", ())))
        if piece and self.first is None:
            self.first = seconds
        self.text += piece
        if usage := event.get("usage"):
            self.tokens = int(usage["completion_tokens"])
        if timings := event.get("timings"):
            self.tokens, self.drafted = int(timings["predicted_n"]), int(timings.get("draft_n", 0))
        for told in event.get("metrics", {}).get("speculative_decoding", ()):
            self.drafted += int(told["num_draft_tokens"])


def _said(choice: Mapping[str, Any]) -> str:
    """The text in a choice, of a chat or not."""
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


def client(most: int = 64) -> httpx2.AsyncClient:
    """A client that waits for slow answers and holds up to `most` connections."""
    limits = httpx2.Limits(max_connections=most, max_keepalive_connections=most)
    return httpx2.AsyncClient(timeout=httpx2.Timeout(PATIENCE, connect=30), limits=limits, trust_env=False)


async def events(reply: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a streamed reply, as objects."""
    async for line in reply.aiter_lines():
        data = line.removeprefix("data: ")
        if data != line and data != "[DONE]":
            yield json.loads(data)


async def ask(http: httpx2.AsyncClient, endpoint: Endpoint, ids: Sequence[int], tokens: int) -> Reply:
    """The greedy answer to the prompt `ids`; raises the endpoint's error where there is none."""
    found, start = Gathered(), time.perf_counter()
    try:
        async with http.stream("POST", endpoint.address + endpoint.path, json=endpoint.body(ids, tokens)) as reply:
            if reply.status_code != 200:
                raise endpoint.error(f"{endpoint.name} refused: {(await reply.aread()).decode()[:300]}")
            async for event in events(reply):
                found.add(event, time.perf_counter() - start)
    except (httpx2.HTTPError, LookupError, TypeError, ValueError) as error:
        raise endpoint.error(f"{endpoint.name} did not answer ({type(error).__name__}: {error})") from None
    seconds = time.perf_counter() - start
    if not found.tokens:
        raise endpoint.error(f"{endpoint.name} counted no tokens of its answer.")
    return Reply(found.tokens, seconds, seconds if found.first is None else found.first, found.text, found.drafted)


def together(endpoint: Endpoint, lists: Sequence[Sequence[Sequence[int]]], tokens: int) -> tuple[float, list[Reply]]:
    """(seconds of all, the answers client by client): each client asks the prompts of its list one after the other."""
    return asyncio.run(_together(endpoint, lists, tokens))


async def _together(
    endpoint: Endpoint, lists: Sequence[Sequence[Sequence[int]]], tokens: int
) -> tuple[float, list[Reply]]:
    async with client(len(lists)) as http:

        async def asks(prompts: Sequence[Sequence[int]]) -> list[Reply]:
            return [await ask(http, endpoint, ids, tokens) for ids in prompts]

        start = time.perf_counter()
        found = await asyncio.gather(*map(asks, lists))
        return time.perf_counter() - start, [reply for each in found for reply in each]


def beginnings(tokenizer: Any) -> list[int]:
    """Tokens of plain letters for `distinct`, BEGUN of them where there are as many.

    Letters, since a peer that tells the prompt again fails where its bytes are no text.
    """
    found = (id for id in range(ROOM, len(tokenizer)) if (word := tokenizer.decode([id])).isascii() and word.isalpha())
    return list(islice(found, BEGUN))


def distinct(begin: Sequence[int], number: int, ids: Sequence[int]) -> list[int]:
    """The prompt `ids` behind the token of its `number`, so that no server knows its beginning from another prompt."""
    return [begin[number % len(begin)], *ids]


def dealt(
    begin: Sequence[int], prompts: Sequence[Sequence[int]], clients: int, each: int, turn: int
) -> list[list[list[int]]]:
    """Prompts for `clients` clients, `each` one after the other: others in every turn, and all of them distinct."""
    count = clients * each
    numbers = range(turn * count, (turn + 1) * count)
    taken = [distinct(begin, number, prompts[number % len(prompts)]) for number in numbers]
    return [taken[first::clients] for first in range(clients)]


def read_metrics(text: str) -> dict[str, float]:
    """The samples of Prometheus' text format, by name and labels as they stand there."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def total(metrics: Mapping[str, float], name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(value for key, value in metrics.items() if key.partition("{")[0] == name)


async def metrics(http: httpx2.AsyncClient, address: str) -> dict[str, float]:
    """What the server counts now."""
    return read_metrics((await http.get(f"{address}/metrics")).text)
