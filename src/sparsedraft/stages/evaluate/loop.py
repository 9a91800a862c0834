"""The real loop, measured: histograms, seconds of each part, and how many sampled drafts were kept."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.loop.sequence import Step
from sparsedraft.speculate.loop.times import Times, synchronized
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.stages.evaluate.acceptance import Histogram
from sparsedraft.writers.protocol.backend import Backend


def run(
    pair: Pair,
    asked: PromptPair,
    policy: Policy,
    sampling: Sampling,
    new_tokens: int,
    seed: int,
    branching: int = 1,
    most: int = 0,
) -> tuple[list[int], dict[str, Any], dict[str, Any]]:
    """(tokens, histogram, measures) of one answer; the histogram has a place for `most` accepted drafts at least.

    Seconds, steps, drafts and tokens leave the first step out, which is `first` (and reads the prompt, unless `reading`
    or another policy has); the histogram does not.
    """
    decoder = pair.decoder([asked], policy, sampling, branching=branching, again=True)
    steps: list[Step] = []
    first = Times()
    for step in decoder.decode([asked.target], new_tokens, [seed]):
        if not steps:
            first, decoder.times = decoder.times, Times()
        steps.append(step)
    tokens = [token for step in steps for token in step.emitted]
    histogram = Histogram.of_steps(steps, max([most, *(len(step.drafted) for step in steps)]))
    later = steps[1:]
    measures = {
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
    return tokens, histogram.to_dict(), measures


def reading(pair: Pair, asked: PromptPair) -> dict[str, float]:
    """Seconds in which each model reads its prompt but for the last token, from nothing; `run` then goes on from there.

    A prompt that fills the drafter's context is not read: it would not draft.
    """
    found = {}
    for name, side, ids in (("target", pair.target, asked.target), ("drafter", pair.drafter, asked.drafter)):
        if side is None:
            continue
        backend = side.remembering()
        backend.clear()
        if side.context is not None and len(ids) >= side.context:
            continue
        read = [token if token < side.known else 0 for token in ids[:-1]]  # as the drafter reads them in the loop
        start = time.perf_counter()
        if read:
            with pair.around():
                synchronized(backend.forward([read], [1]))
        found[name] = round(time.perf_counter() - start, 6)
    return found


def replay(
    pair: Pair, asked: Sequence[PromptPair], k: int, sampling: Sampling, new_tokens: int, seeds: Sequence[int],
    target: Backend,
) -> list[tuple[list[int], dict[str, Any], dict[str, int]]]:  # fmt: skip
    """(tokens, histogram, `compared`) of several answers, decoded at once with `target` in the pair's target's place,
    an empty Backend of a row each."""
    decoder = pair.decoder(asked, Constant(k), sampling, again=True, target=target)
    steps: list[list[Step]] = [[] for _ in asked]
    for step in decoder.decode([prompt.target for prompt in asked], new_tokens, seeds):
        steps[step.row].append(step)
    return [
        (
            [token for step in own for token in step.emitted],
            Histogram.of_steps(own, max([k, *(len(step.drafted) for step in own)])).to_dict(),
            compared(own),
        )
        for own in steps
    ]


def compared(steps: Sequence[Step]) -> dict[str, int]:
    """Of the drafts: those that the target's own choice was held against (none behind a rejected one), and those that
    were accepted."""
    return {
        "accepted": sum(step.accepted for step in steps),
        "compared": sum(min(step.accepted + 1, len(step.drafted)) for step in steps),
    }
