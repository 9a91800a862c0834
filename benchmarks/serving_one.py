"""One client of the server: its rate beside `generate`'s, its first token beside the engine's own reading of a prompt,
and the first token of a chat's second turn."""

import statistics
import time
from contextlib import closing
from dataclasses import asdict
from typing import Any

from common import IDLE
from long_prompts import long_prompts
from serving_clients import Endpoint, Reply, distinct, together
from serving_own import Served
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.tokenizers import templates
from sparsedraft.serve.models import load_pairs
from sparsedraft.serve.options import ServeOptions
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant, policy_named
from whole_answers import Own, OwnAnswer, Task, ratio, speeds

SERVED, GENERATED = "one client of the server", "generate"
KEPT = 0.97  # of generate's tokens/s, at least
LATE = 30.0  # milliseconds: the most that the first token may come after the engine's own reading
SOONER = 10.0  # times that the second turn's first token is to come sooner than without the cache
HISTORY = 2000  # tokens of a chat's first turn
NEXT = "Now say the same again, in one short sentence."


def asked(endpoint: Endpoint, ids: list[int], tokens: int) -> Reply:
    """The answer to one prompt, asked of a quiet machine."""
    time.sleep(IDLE)
    return together(endpoint, [[ids]], tokens)[1][0]


def one(bench: Any) -> None:
    """A streaming client and `generate` with the same pair, in turns; who is first changes from prompt to prompt.

    No prompt begins like another, so that the server reads all of each as `generate` does. The row of the first token
    is an upper limit: its ratio is LATE / (first token - the engine's own reading of the same prompt), by medians.
    """
    task: Task = bench.task
    options = ServeOptions(target=str(bench.target), drafter=(str(bench.drafter),), lookup=bench.lookup)
    pair = load_pairs(options)[-1]
    own, alone = Own(pair, policy_named("auto")), Own(Pair.of(pair.target, None, "auto", Sampling()), Constant(0))
    rows: list[dict[str, Any]] = []
    late: list[float] = []
    with closing(bench.served(1, bench.drafter)) as served:
        prompts = [
            distinct(bench.beginnings, number, ids) for number, ids in enumerate([*task.choosing, *task.measured])
        ]
        for ids in prompts[: len(task.choosing)]:  # `auto` learns this machine in both
            own(ids, task.short)
            asked(served.endpoint(), ids, task.short)
        for number, ids in enumerate(prompts[len(task.choosing) :]):
            for name in (SERVED, GENERATED)[:: 1 if number % 2 else -1]:
                answer = asked(served.endpoint(), ids, task.tokens) if name == SERVED else rested(own, ids, task.tokens)
                rows.append({"prompt": number, "way": name, **asdict(answer)})
            late.append(first_after_reading(served, alone, distinct(bench.beginnings, len(prompts) + number, ids[1:])))
            bench.keep("one-turns", {"rows": rows, "late_ms": late})
    value, span = ratio(rows, SERVED, GENERATED)
    figures = {name: round(rate, 2) for name, rate in speeds(rows).items()}
    interval = [round(end, 3) for end in span]
    bench.table.ratio("one: tokens/s of a streaming client / of generate", value, KEPT, interval=interval, **figures)
    figures = {"least": round(min(late), 2), "most": round(max(late), 2), "prompts": len(late)}
    seen = statistics.median(late)
    bench.table.limit("one: first token after the engine's own reading, median", seen, LATE, "ms", **figures)


def rested(own: Own, ids: list[int], tokens: int) -> OwnAnswer:
    """The same of the engine in this process."""
    time.sleep(IDLE)
    return own(ids, tokens)


def first_after_reading(served: Served, alone: Own, ids: list[int]) -> float:
    """Milliseconds from the end of the target's own reading of the prompt, which is a pass of the engine in this
    process, to the first token that a client sees; nothing is drafted."""
    reading = rested(alone, ids, 1).target_reading
    return 1000 * (asked(served.alone(), ids, 1).first - reading)


def turn(bench: Any) -> None:
    """The first token of a second turn, whose history the server has read, and of one that begins with another token,
    which the server has to read as a whole. The row is how many times sooner the first one comes."""
    length = 300 if bench.options.quick else HISTORY
    tokenizer, times = bench.tokenizer, []
    question = templates.chat_ids(tokenizer, [{"role": "user", "content": NEXT}])
    with closing(bench.served(bench.places, bench.drafter)) as served:
        endpoint = served.endpoint()
        for number, history in enumerate(long_prompts(tokenizer, length, bench.turns)):
            answer = asked(endpoint, history, 32).text
            second = [*history, *tokenizer(answer, add_special_tokens=False)["input_ids"], *question]
            firsts = [asked(endpoint, ids, 1).first for ids in (second, distinct(bench.beginnings, number, second))]
            times.append(firsts)
            bench.keep("turn-turns", times)
    cached, whole = (statistics.median(column) for column in zip(*times, strict=True))
    figures = {"seconds": round(cached, 3), "seconds_without": round(whole, 3), "turns": len(times)}
    label = f"turn: first token behind {length} tokens, without the cache / with it"
    bench.table.ratio(label, whole / cached, SOONER, **figures)
