"""Ways in the real loop, beside the target alone: all answer a prompt before the next prompt comes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.stages.evaluate.bootstrap import prompt_count, ratio_interval, resampled, total
from sparsedraft.writers.conversation import Answer

Runner = tuple[Pair, Policy]  # the policy learns from answer to answer


@dataclass(frozen=True)
class Seen:
    """What a way did on all prompts, their reading included.

    `speedup`: its tokens per second against those of the target alone, with the 95 % interval over the prompts.
    """

    tokens_per_second: float
    speedup: float
    speedup_interval: list[float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def take_turns(
    runners: Mapping[str, Runner], alone: str, answers: Sequence[Answer], sampling: Sampling,
    on_answer: Callable[[], object],
) -> dict[str, Seen]:  # fmt: skip
    """What each did, by its name; `alone` is the name of the target alone. Who begins changes from prompt to prompt."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in runners}
    names = [*runners]
    for turn, answer in enumerate(answers):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            rows[name].append({"prompt": answer.prompt_id, **_answered(*runners[name], answer, sampling)})
            on_answer()
    return {name: seen(of_way, rows[alone]) for name, of_way in rows.items()}


def _answered(pair: Pair, policy: Policy, answer: Answer, sampling: Sampling) -> dict[str, Any]:
    """Tokens and seconds of one answer, from the prompt's first token on."""
    start = time.perf_counter()
    prompt = pair.prompt_pair(list(answer.prompt_ids), answer.messages[:-1])
    decoder = pair.decoder([prompt], policy, sampling)
    text = generate(decoder, prompt.target, answer.max_new_tokens, answer.seed)
    return {"tokens": len(text.tokens), "seconds": time.perf_counter() - start}


def seen(rows: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]]) -> Seen:
    """The figures of `rows` ("prompt", "tokens", "seconds") against those of the target alone."""
    speed, plain = (total(of, "tokens") / total(of, "seconds") for of in (rows, alone))
    sums = (resampled(of, lambda row: row["tokens"], lambda row: row["seconds"]) for of in (rows, alone))
    (tokens, seconds), (plain_tokens, plain_seconds) = sums  # of the same prompts drawn
    draws = (tokens / seconds) / (plain_tokens / plain_seconds)
    interval = [] if rows is alone else ratio_interval(speed / plain, draws, prompt_count([*rows]))
    return Seen(speed, speed / plain, interval)
