"""`sparsedraft generate`: texts from a target on stdout, as they are written."""

import sys
import time
from typing import Any

from sparsedraft.base.console import console
from sparsedraft.speculate.loop.shares import by_source, shares
from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.stages.generate.texts import GeneratedText, TextGenerator, load_pair


def generate(options: GenerateOptions) -> dict[str, Any]:
    """Write the target's texts to stdout, one as it grows, several when all are whole; return texts, counts and steps.

    With several prompts, the figures are those of all of them and "answers" has each.
    """
    pair = load_pair(options)
    generator = TextGenerator(pair, options)
    drawn = pair.draws(generator.sampling)
    if options.stats and pair.why:
        at = f", at {pair.drafter_temperature:g} times the temperature" if drawn else ""
        console.print(f"drafting: {pair.route} ({pair.why}){at}")
    texts, start = generator.texts, time.perf_counter()
    for piece in generator.pieces():
        if len(texts) == 1:
            write(piece.text)
    seconds = time.perf_counter() - start
    for text in texts:
        write("\n" if len(texts) == 1 else f"{text.text}\n")
    result = figures(texts, seconds, options.stats, options.lookup)
    result |= {"drafter_temperature": pair.drafter_temperature} if drawn else {}
    result |= {} if pair.mask_token is None else {"drafting": "parallel"}
    if options.drafter:
        measured = generator.measured
        result |= {"estimated_speedup": measured.estimated_speedup, "plain_steps": measured.plain_steps}
    if options.stats:
        console.print(
            f"{result['tokens']} tokens in {result['steps']} steps, {result['mal']:.2f} a step, {seconds:.1f} s"
        )
        for source, found in result.get("sources", {}).items():
            console.print(f"{source}: {found['share_of_steps']:.0%} of the steps")
        if speedup := result.get("estimated_speedup"):
            console.print(f"about {speedup:.2f} times as fast as {result['plain_steps']} plain steps among them")
        if options.drafter and len(texts) == 1:
            accepted = " ".join(map(str, texts[0].accepted))
            console.print(f"drafted tokens accepted, step by step: {accepted}", soft_wrap=True)
    return result


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def figures(texts: list[GeneratedText], seconds: float, stats: bool, lookup: bool = False) -> dict[str, Any]:
    """The command's JSON object; with `stats`, with what each step drafted and accepted.

    `lookup`: with the share of look-up, which drafted beside a model.
    """
    tokens, steps = sum(len(text.token_ids) for text in texts), sum(text.steps for text in texts)
    result: dict[str, Any] = {
        "text": texts[0].text,
        "prompt_tokens": sum(text.prompt_tokens for text in texts),
        "tokens": tokens,
        "steps": steps,
        "mal": tokens / max(1, steps),
        "tokens_per_second": tokens / seconds,
        "route": texts[0].route,
    }
    if lookup:
        result["sources"] = shares(by_source(step for text in texts for step in text.by_step))
    if len(texts) > 1:
        result["answers"] = [_counts(text, stats) for text in texts]
    elif stats:
        result |= _counts(texts[0], stats)
    return result


def _counts(text: GeneratedText, stats: bool) -> dict[str, Any]:
    counts: dict[str, Any] = {"text": text.text, "tokens": len(text.token_ids), "steps": text.steps}
    return counts | ({"accepted": text.accepted, "drafted": text.drafted} if stats else {})
