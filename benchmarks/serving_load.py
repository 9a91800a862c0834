"""Thousands of requests, some cancelled and some malformed: the server's memory, its places, and its texts."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import httpx2

import sparsedraft
from common import CACHE, MODEL
from fourbit_models import packed
from serving_clients import Gathered, client, events, metrics, total
from serving_own import NAME, Served
from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.text import prompts
from sparsedraft.writers.loaded import LoadedModel

PLACES = 16  # answers written at once, and requests in flight
TOKENS = 16  # of an answer, at most
SAMPLED = 50  # requests between two looks at the memory
GROWN = 1.02  # goal: memory over the last tenth of the requests / over the second tenth
CANCELLED, MALFORMED = 3, 7  # last digits of the requests' numbers
DRAFTS: tuple[dict[str, Any], ...] = ({}, {"num_draft_tokens": 2}, {"num_draft_tokens": 0}, {"draft_model": "none"})
PATH = "/v1/chat/completions"
LONG = 64  # tokens of the answers that fill all places at the end
PATIENCE = 30.0  # seconds at most until the server has noticed who went away
SAID = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}]}
BAD: tuple[bytes | dict[str, Any], ...] = (
    b'{"model": "served", "messages": [',
    b"[]",
    b'{"model": "served", "messages": [{"role": "user", "content": "Hello"}], "temperature": NaN}',
    {**SAID, "model": "another"},
    {**SAID, "messages": []},
    {**SAID, "max_tokens": -1},
    {**SAID, "num_beams": 4},
    {**SAID, "n": 1000},
    {**SAID, "messages": [{"role": "user", "content": "word " * 20_000}]},
)


@dataclass
class Seen:
    """What came of the requests: how many of each kind ended as they should, and the memory at some of them."""

    texts: int = 0
    equal: int = 0
    cancelled: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)  # what should not have been answered so
    memory: list[tuple[int, int]] = field(default_factory=list)  # (requests so far, bytes)

    def tenth(self, which: int, requests: int) -> float:
        """Mean bytes over this tenth of the requests, from 0. UserError where nothing was seen of it."""
        part = requests / 10
        found = [size for number, size in self.memory if which * part <= number < (which + 1) * part]
        if not found:
            raise UserError(f"--requests {requests} is too few to see the memory over a tenth of them: give more.")
        return mean(found)


@dataclass
class Load:
    """The requests to one server: `texts` are the answers of `generate` by their prompts."""

    served: Served
    texts: Sequence[tuple[str, str]]
    requests: int
    seen: Seen = field(default_factory=Seen)

    async def run(self) -> None:
        """All requests, PLACES in flight."""
        numbers = iter(range(self.requests))

        async def asks() -> None:
            for number in numbers:
                await self.one(http, number)

        async with client(PLACES) as http:
            await asyncio.gather(*(asks() for _ in range(PLACES)))

    async def one(self, http: httpx2.AsyncClient, number: int) -> None:
        """One request: what it is follows from its number."""
        every = max(1, min(SAMPLED, self.requests // 100))
        if number % every == 0:
            self.seen.memory.append((number, self.served.resident()))
        if number % 1000 == 999:
            console.print(f"{number + 1} requests, {self.served.resident() >> 20} MiB", style="dim")
        if number % 10 == MALFORMED:
            await self.malformed(http, BAD[number // 10 % len(BAD)])
        else:
            prompt, text = self.texts[number % len(self.texts)]
            body = chat(prompt, TOKENS, DRAFTS[number // 7 % len(DRAFTS)])
            await self.answered(http, body, None if number % 10 == CANCELLED else text)

    async def malformed(self, http: httpx2.AsyncClient, body: bytes | dict[str, Any]) -> None:
        """A request that is to be refused with a sentence."""
        sent: Any = {"content": body} if isinstance(body, bytes) else {"json": body}
        reply = await http.post(self.served.address + PATH, headers={"Content-Type": "application/json"}, **sent)
        if 400 <= reply.status_code < 500 and reply.json()["error"]["message"]:
            self.seen.refused += 1
        else:
            self.seen.wrong.append(f"{reply.status_code} to {str(body)[:60]}")

    async def answered(self, http: httpx2.AsyncClient, body: dict[str, Any], text: str | None) -> None:
        """A request whose answer is to be `text`; None: the client goes away once it has begun."""
        found = Gathered()
        async with http.stream("POST", self.served.address + PATH, json=body) as reply:
            if reply.status_code != 200:
                self.seen.wrong.append(f"{reply.status_code}: {(await reply.aread()).decode()[:200]}")
                return
            async for event in events(reply):
                found.add(event, 0.0)
                if text is None and found.text:
                    self.seen.cancelled += 1
                    return
        self.seen.texts += 1
        if found.text == (text or ""):
            self.seen.equal += 1
        elif len(self.seen.wrong) < 5:
            self.seen.wrong.append(f"{found.text!r} is not {text!r}")

    async def places(self) -> tuple[int, int]:
        """(answers that still run or wait once nobody asks, answers that run at once when all places are asked for)."""
        async with client(2 * PLACES) as http:
            end = time.monotonic() + PATIENCE
            while (left := taken(await metrics(http, self.served.address))) and time.monotonic() < end:
                await asyncio.sleep(0.1)
            bodies = [chat(f"{self.texts[i % len(self.texts)][0]} ({i})", LONG, {}) for i in range(PLACES)]
            asked = [asyncio.create_task(self.drained(http, body)) for body in bodies]
            most = 0
            while not all(task.done() for task in asked):
                running = total(await metrics(http, self.served.address), "sparsedraft:num_requests_running")
                most = max(most, int(running))
                await asyncio.sleep(0.02)
            await asyncio.gather(*asked)
        return left, most

    async def drained(self, http: httpx2.AsyncClient, body: dict[str, Any]) -> None:
        """An answer that nobody looks at."""
        async with http.stream("POST", self.served.address + PATH, json=body) as reply:
            async for _ in events(reply):
                pass


def chat(prompt: str, tokens: int, how: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a greedy, streamed chat."""
    said = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    return {"model": NAME, "temperature": 0, "stream": True, **said, **how}


def taken(seen: Mapping[str, float]) -> int:
    """Answers that run or wait."""
    return int(sum(total(seen, f"sparsedraft:num_requests_{what}") for what in ("running", "waiting")))


def generated(target: Path, count: int) -> list[tuple[str, str]]:
    """(prompt, what `generate` answers without a drafter) of so many prompts."""
    asked = [prompt.turns[0] for prompt in prompts.spread(prompts.read("demo:eval"), count)]
    answers = sparsedraft.generate(LoadedModel.load(target, runtime="native"), asked, max_new_tokens=TOKENS)
    return [(prompt, answer.text) for prompt, answer in zip(asked, answers, strict=True)]


def load(bench: Any) -> None:
    """The rows of the load."""
    requests = bench.requests
    target = packed(MODEL, CACHE / "serving" / "smollm2-int8", "--weights", "int8")
    texts = generated(target, 8 if bench.options.quick else 48)
    with closing(Served(target, bench.threads, PLACES, "--drafter", target, "--lookup")) as served:
        found = Load(served, texts, requests)
        start = time.perf_counter()
        asyncio.run(found.run())
        seconds = time.perf_counter() - start
        left, most = asyncio.run(found.places())
    seen, table = found.seen, bench.table
    bench.keep("load-seen", vars(seen))
    counts = {"texts": seen.texts, "cancelled": seen.cancelled, "refused": seen.refused, "wrong": seen.wrong[:5]}
    table.note(f"load: seconds of {requests} requests", seconds, **counts)
    last, second = seen.tenth(9, requests), seen.tenth(1, requests)
    figures = {"mib": round(last / 2**20, 1), "mib_of_second": round(second / 2**20, 1)}
    table.limit("load: memory over the last tenth / over the second", last / second, GROWN, **figures)
    table.ratio("load: requests that ended as they should", 1 - len(seen.wrong) / requests, 1.0)
    table.ratio("load: places free after it", most / PLACES, 1.0, left=left)
    table.ratio("load: greedy texts equal to generate's", seen.equal / seen.texts, 1.0)
