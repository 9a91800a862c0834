"""`sparsedraft generate`: stream text from a target, with or without a drafter."""

import sys
import time
from typing import Any

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.base.hashing import seed_of
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.names import LOOKUP
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.detokenizer import Detokenizer
from sparsedraft.speculate.loop.sequence import Step
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.speculate.policy.policies import policy_named
from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.text import prompts
from sparsedraft.writers.loaded import LoadedModel


def generate(options: GenerateOptions) -> dict[str, Any]:
    """Write the target's answers to stdout, one as it comes, several as they end; return texts, counts and steps.

    The text is the target's own (greedy) or distributed as the target's own (temperature > 0), whatever the drafter.
    With several prompts, the figures are those of all of them and "answers" has each.
    """
    o = options
    rule = policy_named(o.policy, o.k)
    sampling = Sampling(o.temperature, o.top_k, o.top_p, o.min_p, o.repetition_penalty)
    loading: dict[str, Any] = {
        "dtype": o.dtype, "device": o.device, "runtime": o.runtime, "template_args": o.template_args,
    }  # fmt: skip
    templates.check(checkpoint.load_tokenizer(o.target), o.template_args)
    p = LoadedModel.load(o.target, **loading)
    q = LOOKUP if o.drafter == LOOKUP else None if o.drafter is None else LoadedModel.load(o.drafter, **loading)
    pair = Pair.of(p, q, o.uag, sampling)
    if o.tree > 1 and pair.drafter is None:
        raise UserError(f"--tree {o.tree} needs a model that drafts: give one as --drafter, or leave it out.")
    if o.stats and pair.why:
        console.print(f"drafting: {pair.route} ({pair.why})")
    rows = [_prompted(pair, text, o.raw) for text in o.prompt]
    stops = Stops(p.tokenizer, o.stop) if o.stop else None
    seeds = [o.seed] if len(rows) == 1 else [seed_of(o.seed, i) for i in range(len(rows))]
    start = time.perf_counter()
    groups = [list(range(len(rows)))] if len(rows) == 1 or pair.batches else [[i] for i in range(len(rows))]
    answers = [_Answer(p, stops, live=len(rows) == 1) for _ in rows]
    for group in groups:  # one by one where a model takes no masks of ours
        decoder = pair.decoder([rows[i] for i in group], rule, sampling, stops=stops, branching=o.tree)
        for step in decoder.decode([rows[i].target for i in group], o.max_new_tokens, [seeds[i] for i in group]):
            answers[group[step.row]].take(step)
    seconds = time.perf_counter() - start
    for answer in answers:
        answer.finish()
    tokens, steps = (sum(len(getattr(answer, key)) for answer in answers) for key in ("tokens", "steps"))
    result: dict[str, Any] = {
        "text": answers[0].text,
        "prompt_tokens": sum(len(row.target) for row in rows),
        "tokens": tokens,
        "steps": steps,
        "mal": tokens / max(1, steps),
        "tokens_per_second": tokens / seconds,
        "route": pair.route,
    }
    if len(answers) > 1:
        result["answers"] = [answer.result(o.stats) for answer in answers]
    elif o.stats:
        result |= answers[0].result(o.stats)
    if o.stats:
        console.print(f"{tokens} tokens in {steps} steps, {result['mal']:.2f} a step, {seconds:.1f} s")
        if o.drafter and len(answers) == 1:
            accepted = " ".join(str(step.accepted) for step in answers[0].steps)
            console.print(f"drafted tokens accepted, step by step: {accepted}", soft_wrap=True)
    return result


class _Answer:
    """One answer as it grows; written to stdout as it does, if `live`, else at its end."""

    def __init__(self, side: LoadedModel, stops: Stops | None, live: bool) -> None:
        self.stops, self.live = stops, live
        self.tokens: list[int] = []
        self.steps: list[Step] = []
        self._seen, self._grown, self._written = Detokenizer(side.tokenizer), "", 0

    def take(self, step: Step) -> None:
        """Another step."""
        self.steps.append(step)
        self.tokens += step.emitted
        if self.live:
            self._grown += self._seen.more(self.tokens)
            end = len(self._cut(self._grown))
            if self.stops and end == len(self._grown):
                end = max(0, end - self.stops.longest + 1)  # its last letters may begin a stop string
            self._write(self._grown[:end])

    @property
    def text(self) -> str:
        """The answer without special tokens, up to a stop string."""
        return self._cut(self._seen.text(self.tokens))

    def finish(self) -> None:
        """Write what is not on stdout yet."""
        self._write(self.text)
        sys.stdout.write("\n")

    def _cut(self, text: str) -> str:
        return self.stops.cut(text) if self.stops else text

    def _write(self, text: str) -> None:
        """Write what `text` has more than was written."""
        sys.stdout.write(text[self._written :])
        sys.stdout.flush()
        self._written = max(self._written, len(text))

    def result(self, stats: bool) -> dict[str, Any]:
        """Text and counts; with `stats`, of each step."""
        found: dict[str, Any] = {"text": self.text, "tokens": len(self.tokens), "steps": len(self.steps)}
        if stats:
            found["accepted"] = [step.accepted for step in self.steps]
            found["drafted"] = [len(step.drafted) for step in self.steps]
        return found


def _prompted(pair: Pair, text: str, raw: bool) -> PromptPair:
    """UserError for what no tokenizer takes, and for a prompt that leaves the drafter's context no room."""
    if prompts.half_surrogate(text):
        raise UserError(f"--prompt {text!a:.60} is not UTF-8 text: give it in that encoding.")
    tokenizer = pair.target.tokenizer
    if raw:
        ids: list[int] = tokenizer(text)["input_ids"]
        asked = pair.prompt_pair(ids)
    else:
        if not tokenizer.chat_template:
            raise UserError(
                f"model {tokenizer.name_or_path} has no chat template: add --raw to continue the text as it is, or use "
                "an instruction-tuned model."
            )
        messages = [{"role": "user", "content": text}]
        asked = pair.prompt_pair(templates.chat_ids(tokenizer, messages), messages)
    context = None if pair.drafter is None else pair.drafter.context
    if context is not None and len(asked.drafter) >= context:
        raise UserError(
            f"the prompt has {len(asked.drafter)} tokens, which fill the drafter's context of {context}: shorten it, "
            "or leave out --drafter."
        )
    return asked
