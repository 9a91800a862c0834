"""The `eval` stage: drafters against a target, the target's work shared by all of them.

The target answers every prompt once. Each drafter is then read over those answers (α, and with `simulate` the
histograms of every K), or drafts in the real loop, K by K and policy by policy, timed against the target alone.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsedraft.base import artifact
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.models.names import LOOKUP, split_lookup
from sparsedraft.models.sources import locate
from sparsedraft.models.tokenizers import templates
from sparsedraft.stages.evaluate.entries import Entry
from sparsedraft.stages.evaluate.evaluation import Evaluation, load
from sparsedraft.stages.evaluate.options import EvaluateOptions, EvaluateSettings
from sparsedraft.stages.evaluate.reuse import drop_unchanged, take_answers, take_up
from sparsedraft.stages.evaluate.servertarget import ServerTarget
from sparsedraft.stages.evaluate.tasks import run_tasks
from sparsedraft.text import prompts
from sparsedraft.text.prompts import Prompt
from sparsedraft.writers.server.address import Endpoint

# options that the result does not depend on, or not always: those are added below
ELSEWHERE = (
    "url", "served_name", "concurrency", "verification", "drafter_temperature", "drafter_window", "drafter_sinks",
    "drafting",
)  # fmt: skip


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Evaluate the drafters against the target on the prompts, or let lm-eval score each model on its tasks.

    The result is described in docs/method.md. A drafter called "lookup" drafts from the text so far (prompt look-up),
    and MODEL+lookup from the text or the model, whichever is expected to bring more tokens per second.
    Writes result.json, rows.jsonl, answers.jsonl (the target's, by unit of work) and example.json to `options.out`
    (None: nowhere). An interrupted evaluation continues with the first answer that is not measured; a finished one
    takes more drafters beside those it has. `options.answers`: an evaluation whose answers by the same target are
    taken, so that a drafter costs its own pass only. Raises UserError for checkpoints whose claims are false, for
    drafters that cannot draft for this target, and for answers to other questions.
    """
    if options.tasks is not None:
        return run_tasks(options)
    if options.out is None:
        with tempfile.TemporaryDirectory() as scratch:
            return evaluate(options.model_copy(update={"out": Path(scratch) / "eval", "overwrite": False}))
    out, target, source, drafters = options.out, options.target, str(options.prompts), options.drafters
    chosen = _choose_prompts(source, options)
    endpoint = Endpoint(options.url, options.served_name or target, options.concurrency) if options.url else None
    folder = locate(target, weights=False) if endpoint else checkpoint.find(target)
    entries = {name: Entry.of(ref) for name, ref in drafters}
    tokenizer = templates.give(checkpoint.load_tokenizer(target), options.template_args)
    templates.check(tokenizer, options.template_args)

    inputs = _inputs(options, folder, endpoint, entries, chosen)

    def build(work: Path) -> dict[str, Any]:
        copies = [] if options.overwrite else take_up(out, work)
        copies += take_answers(options.answers, inputs, work) if options.answers else []
        try:
            model = ServerTarget(folder, endpoint, options.template_args) if endpoint else load(folder, options)
            return Evaluation(work, model, target, tokenizer, entries, options).run(chosen)
        except UserError:
            drop_unchanged(copies)
            raise

    return artifact.make(
        out,
        "eval",
        inputs,
        build,
        seed=options.seed,
        overwrite=options.overwrite,
        tolerance=artifact.Tolerance(grows="drafters"),
        reads=(target, source, options.answers, *(split_lookup(ref)[0] for _, ref in drafters if ref != LOOKUP)),
    )


def _inputs(
    options: EvaluateOptions,
    target: Path,
    endpoint: Endpoint | None,
    drafters: dict[str, Entry],
    chosen: Sequence[Prompt],
) -> dict[str, object]:
    """What the result depends on: the artifact's inputs."""
    return {
        "target": checkpoint.identity_files(target) if endpoint else target,
        "drafters": {name: entry.inputs for name, entry in drafters.items()},
        "prompts": [p.content for p in chosen],
        **templates.inputs(options.template_args),
        "options": {
            **{name: value for name, value in options.part(EvaluateSettings).items() if name not in ELSEWHERE},
            **{name: getattr(options, name) for name in ("seed", "device", "dtype", "runtime")},
            # results of older versions stay as they are
            **({} if options.cache == "int16" else {"cache": options.cache}),
            **({"verification": "block"} if options.blockwise else {}),
            **({} if options.sampling.greedy or options.factor is None else {"drafter_temperature": options.factor}),
            **_windowed(options, drafters),
            **({} if options.drafting == "auto" else {"drafting": options.drafting}),
            "k": [*options.numbers, *options.policies],
            **({"served": endpoint.served} if endpoint else {}),
        },
    }


def _windowed(options: EvaluateOptions, drafters: dict[str, Entry]) -> dict[str, int]:
    """What is asked for beside the drafters' own windows, which their folders hold."""
    if options.windowed or not any(entry.own_window for entry in drafters.values()):
        return options.windowed
    given = {"drafter_window": options.drafter_window, "drafter_sinks": options.drafter_sinks}
    return {name: value for name, value in given.items() if value is not None}


def _choose_prompts(source: str, options: EvaluateOptions) -> list[Prompt]:
    """The prompts of `source`: all, the first `limit`, or (`spread`) as many at equal distances."""
    all_prompts = prompts.read(source)
    if options.limit is None:
        return all_prompts
    return prompts.spread(all_prompts, options.limit) if options.spread else all_prompts[: options.limit]
