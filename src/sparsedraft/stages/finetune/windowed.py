"""Samples as a drafter with a window reads them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from sparsedraft.speculate.drafters.window import Window
from sparsedraft.text.sample import Sample


def windowed(samples: Iterable[Sample], window: Window) -> Iterator[Sample]:
    """Each sample as one or more, whose prompt is what `window` leaves of all before a stretch of the answer.

    So every token of an answer follows the context that it has where the drafter drafts, one token a step.
    """
    for sample in samples:
        tokens, prompt = [*sample.prompt_ids, *sample.answer_ids], len(sample.prompt_ids)
        for number, (_, start, end) in enumerate(window.stretches(prompt, len(tokens))):
            of_answer = slice(start - prompt, end - prompt)
            yield replace(
                sample,
                id=f"{sample.id}#{number}" if number else sample.id,
                prompt_ids=window.of(tokens[:start]),
                answer_ids=tokens[start:end],
                topk_ids=None if sample.topk_ids is None else sample.topk_ids[of_answer],
                topk_logprobs=None if sample.topk_logprobs is None else sample.topk_logprobs[of_answer],
            )
