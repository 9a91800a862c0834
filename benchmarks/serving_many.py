"""Several clients at once: our server beside llama.cpp's and ik_llama.cpp's, with and without drafters, in turns.

For each number of clients every server is started with as many places. What has a choice (our drafter and K; their
file and K) is chosen before, on other prompts. Then all that were chosen stay loaded, and take turns round by round.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import mean, median
from typing import Any

from common import IDLE
from fourbit_answers import KS, nearest
from peers import Missing
from peers_server import Server
from serving_clients import Endpoint, dealt, together
from serving_own import Served, busy
from sparsedraft.base.console import console
from sparsedraft.base.hashing import text_hash
from whole_answers import Task, best, leaving_out, ratio, speeds

KINDS = {"int4": ("Q4_0", "Q4_K_M"), "int8": ("Q8_0",)}  # their files by our bits
ROUNDS = 4
GOAL, NO_LOSS = 1.2, 0.95  # of ours / the best of theirs, and of ours with a drafter / without
OWN_KS: tuple[int | str, ...] = ("auto", 2, 4)
OURS, ALONE = "ours", "alone"
# ik_llama.cpp's flash attention aborts (GGML_ASSERT(S > 0) in iqk_fa_templates.h) with drafts and with several slots
NO_FLASH = ("-fa", "off")
QUIET = 0.2  # cores that other work may use
WARM_UP = -1  # the turn before the first, whose prompts begin like none of the others


def peer_endpoint(server: Server) -> Endpoint:
    """Greedy answers of a peer's server, by its own path."""
    # of the samplers only the one that decides: the others' sorting would count as decoding
    fields = {"temperature": 0, "top_k": 1, "samplers": ["top_k"]}
    return Endpoint(server.name, server.address, "/completion", fields, "n_predict", Missing)


def own_endpoint(served: Served, k: int | str) -> Endpoint:
    """Ours with K tokens drafted a step, or as the policy says."""
    return served.endpoint() if k == "auto" else served.endpoint(num_draft_tokens=k)


@dataclass
class Crowd:
    """So many clients at once, `each` with so many prompts a turn; `kind` is the file that each peer is best with,
    once it is known."""

    bench: Any
    bits: str
    clients: int
    kind: dict[str, str] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)  # the ways that answered on the prompts to choose on

    @property
    def label(self) -> str:
        return f"{self.clients} clients, {self.bits}" if self.clients > 1 else f"1 client, {self.bits}"

    @property
    def each(self) -> int:
        """Prompts of a client in a turn."""
        return 1 if self.bench.options.quick else 4 if self.clients == 1 else 2

    def turn(self, name: str, endpoint: Endpoint, number: int, choosing: bool = False) -> dict[str, Any]:
        """What a turn saw: tokens of all clients and the seconds until the last had its answers."""
        task: Task = self.bench.task
        prompts, tokens = (task.choosing, task.short) if choosing else (task.measured, task.tokens)
        time.sleep(IDLE)
        lists = dealt(self.bench.beginnings, prompts, self.clients, 1 if choosing else self.each, number)
        seconds, replies = together(endpoint, lists, tokens)
        return {
            "prompt": number,
            "way": name,
            "tokens": sum(reply.tokens for reply in replies),
            "seconds": seconds,
            "first": median(reply.first for reply in replies),
            "drafted": sum(reply.drafted for reply in replies),
            "texts": [text_hash(reply.text)[:16] for reply in replies],
        }

    def own(self, drafter: str | None) -> Served:
        """Our server with the drafter of this name, or alone; it has answered a turn."""
        folder = self.bench.drafters(self.bits)[drafter] if drafter else None
        served: Served = self.bench.served(self.clients, folder, self.bits)
        self.turn("warm-up", served.endpoint(), WARM_UP, choosing=True)
        return served

    def peer(self, name: str, kind: str, k: int) -> Server:
        """A peer's server, K = 0 alone; it has answered once, which is Missing where it should draft and does not."""
        models = self.bench.models
        target, drafter = (self.bench.files(model, kind)[kind] for model in (models.target, models.drafter))
        llama = self.bench.peers[name]
        if name == "ik_llama.cpp" and (k or self.clients > 1):
            llama = replace(llama, serving=(*llama.serving, *NO_FLASH))
        server = Server(llama, target, self.bench.threads, drafter if k else None, k, slots=self.clients)
        try:
            server.answer(self.bench.task.choosing[0], 16)
            self.turn("warm-up", peer_endpoint(server), WARM_UP, choosing=True)
        except Missing as why:
            server.close()
            raise Missing(f"{why}; {server.why_gone()}") from None
        return server

    def choices(self) -> Iterator[tuple[str, Callable[[], Any], dict[str, Callable[[Any], Endpoint]]]]:
        """(what is started, how, the ways to ask it by name) of all that may be the fastest."""
        for drafter in self.bench.drafters(self.bits):
            ways: dict[str, Callable[[Any], Endpoint]]
            ways = {own_name(drafter, k): partial(own_endpoint, k=k) for k in OWN_KS}
            yield f"{OURS}, {drafter}", partial(self.own, drafter), ways
        for name in self.bench.peers:
            for kind in [self.kind[name]] if name in self.kind else KINDS[self.bits]:
                for k in (0, *KS):
                    way = peer_name(name, kind, k)
                    yield way, partial(self.peer, name, kind, k), {way: peer_endpoint}

    def choose(self) -> dict[str, float]:
        """Tokens a second of all choices on the prompts for that; one server runs at a time."""
        rows: list[dict[str, Any]] = []
        for what, start, ways in self.choices():
            console.print(f"choosing for {self.label}: {what}", style="dim", markup=False)
            with leaving_out(what), closing(start()) as running:
                for number, (name, way) in enumerate(ways.items()):
                    rows.append(self.turn(name, way(running), number, choosing=True))
            self.bench.keep(f"many-{self.bits}-{self.clients}-choosing", rows)
        return speeds(rows)

    def chosen(self) -> tuple[str, list[str]]:
        """(our fastest way with a drafter, theirs that are near the best); notes each peer's best file."""
        speed = self.choose()
        self.tried = list(speed)
        theirs = {name: rate for name, rate in speed.items() if not name.startswith(OURS)}
        for peer in self.bench.peers:
            if mine := {name: rate for name, rate in theirs.items() if name.startswith(f"{peer} ")}:
                self.kind[peer] = best(mine, "").split()[1]
        return best(speed, OURS), nearest(theirs) if theirs else []

    def measure(self) -> None:
        """The rows of this many clients."""
        mine, theirs = self.chosen()
        endpoints: dict[str, Endpoint] = {}
        with ExitStack() as ends:
            pids = []
            drafter, k = parts_of_own(mine)
            for name, which, drafted in ((mine, drafter, k), (f"{OURS}, {ALONE}", None, "auto")):
                server = self.own(which)
                ends.callback(server.close)
                pids.append(server.pid)
                endpoints[name] = own_endpoint(server, drafted)
            for name in theirs:
                with leaving_out(name):
                    peer = self.peer(*parts_of_name(name))
                    ends.callback(peer.close)
                    pids.append(peer.pid)
                    endpoints[name] = peer_endpoint(peer)
            time.sleep(IDLE)
            idle = busy(pids)
            rows = self.rounds(endpoints)
        self.report(rows, mine, idle)

    def rounds(self, endpoints: Mapping[str, Endpoint]) -> list[dict[str, Any]]:
        """All take turns; who begins changes from round to round. A peer that fails in one is left out of all."""
        rows: list[dict[str, Any]] = []
        names, rounds = [*endpoints], 1 if self.bench.options.quick else ROUNDS
        for number in range(rounds):
            console.print(f"{self.label}: round {number + 1} of {rounds}", style="dim")
            first = number % len(names)
            for name in names[first:] + names[:first]:
                with leaving_out(name):
                    rows.append(self.turn(name, endpoints[name], number))
            self.bench.keep(f"many-{self.bits}-{self.clients}-turns", rows)
        seen = Counter(row["way"] for row in rows)
        return [row for row in rows if seen[row["way"]] == rounds]

    def report(self, rows: list[dict[str, Any]], mine: str, idle: tuple[float, float]) -> None:
        """The rows and figures of what was seen."""
        table, speed, alone = self.bench.table, speeds(rows), f"{OURS}, {ALONE}"
        for name, rate in speed.items():
            own = [row for row in rows if row["way"] == name]
            first, drafted = median(row["first"] for row in own), sum(row["drafted"] for row in own)
            table.note(f"{self.label}: {name}, tokens/s", rate, first=round(first, 3), drafted=drafted)
        table.note(f"{self.label}: cores that the idle servers use", idle[0], by_other_work=round(idle[1], 2))
        if idle[1] > QUIET:
            console.print(f"{self.label}: the machine is not quiet, and these figures say little", style="bold red")
        theirs = {name: rate for name, rate in speed.items() if not name.startswith(OURS)}
        not_there = [name for name in self.bench.peers if not any(way.startswith(f"{name} ") for way in self.tried)]
        others = [(best(theirs, ""), "the best of theirs", GOAL)] if theirs else []
        for other, label, goal in (*others, (alone, "ours without a drafter", NO_LOSS)):
            value, span = ratio(rows, mine, other)
            figures = {
                "ours": mine,
                "other": other,
                "interval": [round(end, 3) for end in span],
                "not_there": not_there,
            }
            table.ratio(f"{self.label}: ours / {label}", value, goal, **figures)
        table.ratio(f"{self.label}: answers that are the target's own text", equal_texts(rows, mine, alone), 1.0)


def own_name(drafter: str, k: int | str) -> str:
    """What our way with a drafter is called."""
    return f"{OURS}, {drafter} drafter, K={k}"


def parts_of_own(name: str) -> tuple[str, int | str]:
    """(drafter, K) of such a name."""
    drafter, k = name.removeprefix(f"{OURS}, ").split(" drafter, K=")
    return drafter, k if k == "auto" else int(k)


def peer_name(peer: str, kind: str, k: int) -> str:
    """What a peer's way is called."""
    return f"{peer} {kind} K={k}" if k else f"{peer} {kind} {ALONE}"


def parts_of_name(name: str) -> tuple[str, str, int]:
    """(peer, file, K) of such a name."""
    peer, kind, how = name.split()
    return peer, kind, 0 if how == ALONE else int(how.removeprefix("K="))


def equal_texts(rows: list[dict[str, Any]], one: str, other: str) -> float:
    """The share of answers in which two ways agree."""
    texts = {(row["way"], row["prompt"]): row["texts"] for row in rows if row["way"] in (one, other)}
    return mean(
        mine == theirs
        for (way, number), found in texts.items()
        if way == one
        for mine, theirs in zip(found, texts[other, number], strict=True)
    )


def many(bench: Any) -> None:
    """Every kind of bits and number of clients."""
    for bits in bench.bits:
        kind: dict[str, str] = {}
        for clients in bench.clients:
            Crowd(bench, bits, clients, kind).measure()
