"""The real loop, measured: histograms, seconds of each part, and how many sampled drafts were kept."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.loop.sequence import Step
from sparsedraft.speculate.loop.shares import by_source
from sparsedraft.speculate.loop.times import Times, synchronized
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.stages.evaluate.acceptance import Histogram
from sparsedraft.writers.protocol.backend import Backend


def run(
    pair: Pair,
    prompts: PromptPair,
    policy: Policy,
    sampling: Sampling,
    new_tokens: int,
    seed: int,
    branching: int = 1,
    most: int = 0,
) -> tuple[list[int], dict[str, Any], dict[str, Any]]:
    """(tokens, histogram, measures) of one answer; the histogram has a place for `most` accepted drafts at least.

    Seconds, steps, drafts and tokens leave the first step out, which is `first` (and reads the prompt, unless `reading`
    or another policy has read it); the histogram does not. `sources`: where look-up drafts beside a model, `by_source`.
    """
    if pair.lookup and pair.drafter is not None:
        pair.drafter.cached_backend().clear()
    decoder = pair.decoder([prompts], policy, sampling, branching=branching, keep_cache=True)
    steps: list[Step] = []
    first = Times()
    for step in decoder.decode([prompts.target], new_tokens, [seed]):
        if not steps:
            first, decoder.times = decoder.times, Times()
        steps.append(step)
    tokens = [token for step in steps for token in step.emitted]
    histogram = Histogram.of_steps(steps, max([most, *(len(step.drafted) for step in steps)]))
    later = steps[1:]
    measures: dict[str, Any] = {
        **{key: round(value, 6) for key, value in asdict(decoder.times).items()},
        "seconds": round(decoder.times.total, 6),
        "first": round(first.total, 6),
        "steps": len(later),
        "drafted": sum(len(step.drafted) for step in later),
        "tokens": sum(len(step.emitted) for step in later),
        **compared(steps),
        "tested": sum(step.tested for step in steps),
        "kept": sum(step.kept for step in steps),
        "expected": round(sum(step.expected for step in steps), 6),
    }
    if pair.lookup:
        measures["sources"] = by_source((step.match, len(step.drafted), step.accepted) for step in steps)
    return tokens, histogram.to_dict(), measures


def reading(pair: Pair, prompts: PromptPair) -> dict[str, float]:
    """Seconds that each model takes to read its prompt, without the last token, from an empty cache.

    `run` then starts from that cache. A prompt that fills the drafter's context is not read: it would not draft. Where
    look-up drafts beside it, it reads the prompt in the loop, or not at all.
    """
    seconds = {}
    for name, side, ids in (("target", pair.target, prompts.target), ("drafter", pair.drafter, pair.read(prompts))):
        if side is None or (name == "drafter" and pair.lookup):
            continue
        backend = side.cached_backend()
        backend.clear()
        if side.context is not None and len(ids) >= side.context:
            continue
        read = [
            token if token < side.embedding_rows else 0 for token in ids[:-1]
        ]  # as the drafter reads them in the loop
        start = time.perf_counter()
        if read:
            with pair.around():
                synchronized(backend.forward([read], [1]))
        seconds[name] = round(time.perf_counter() - start, 6)
    return seconds


def replay(
    pair: Pair, prompts: Sequence[PromptPair], k: int, sampling: Sampling, new_tokens: int, seeds: Sequence[int],
    target: Backend,
) -> list[tuple[list[int], dict[str, Any], dict[str, float]]]:  # fmt: skip
    """(tokens, histogram, `compared`) of several answers, decoded at once with `target` in the pair's target's place,
    an empty Backend of a row each."""
    decoder = pair.decoder(prompts, Constant(k), sampling, keep_cache=True, target=target)
    steps: list[list[Step]] = [[] for _ in prompts]
    for step in decoder.decode([prompt.target for prompt in prompts], new_tokens, seeds):
        steps[step.row].append(step)
    return [
        (
            [token for step in of_prompt for token in step.emitted],
            Histogram.of_steps(of_prompt, max([k, *(len(step.drafted) for step in of_prompt)])).to_dict(),
            compared(of_prompt),
        )
        for of_prompt in steps
    ]


def compared(steps: Sequence[Step]) -> dict[str, float]:
    """How many drafts were compared with the target's own choice (none after a rejected one), and how many accepted.

    In a block the acceptance of one draft depends on the others: only its first counts, with its chance alone.
    """
    return {
        "accepted": sum(step.accepted if step.share is None else step.share for step in steps),
        "compared": sum(min(step.accepted + 1, len(step.drafted)) if step.share is None else 1 for step in steps),
    }
