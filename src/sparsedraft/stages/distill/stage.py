"""The `distill` stage: prompts in, a data folder of the target's answers out."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft.base import artifact
from sparsedraft.base.console import console, track
from sparsedraft.base.errors import UserError
from sparsedraft.base.journal import Journal
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.sources import locate
from sparsedraft.models.tokenizers import templates
from sparsedraft.stages.distill import datafolder, magpie, ray_workers, reuse, rewrite
from sparsedraft.stages.distill.cleaner import Cleaner
from sparsedraft.stages.distill.job import Job
from sparsedraft.stages.distill.options import DistillOptions, DistillSettings, Rules
from sparsedraft.text import prompts
from sparsedraft.text.overlap import check_no_overlap
from sparsedraft.text.prompts import Prompt
from sparsedraft.writers.conversation import REFUSED, Rate, fits
from sparsedraft.writers.server.address import Endpoint
from sparsedraft.writers.units import GROUP, key_of, run_units, units_of

# options that are inputs of their own, or no part of what the rows are: where and how fast a server answers
ELSEWHERE = (
    "url", "served_name", "concurrency", "timeout", "retries", "retry_wait", "workers", "temperature", "top_k", "top_p",
    "openings", "batch_size", "limit", "rules",
)  # fmt: skip
NEAR = 0.8  # similarity of prompts that magpie drops where no other is asked for


def distill(options: DistillOptions) -> dict[str, Any]:
    """Let the target write the data folder `options.out`: answers to every turn of the prompts, or (magpie) both.

    Lengths in tokens. `limit` takes the first prompts; for magpie it says how many conversations to try, whose prompts
    begin with `openings` in turns. It is an error if a prompt kept for evaluation is among the prompts, and rows that
    hold one are left out. Raises UserError for prompts, models or servers that cannot be used.
    """
    rules = options.rules
    if options.mode == "magpie" and not rules.near_duplicates:
        rules = rules.model_copy(update={"near_duplicates": NEAR})
    job = _job(options, rules)
    tokenizer = job.tokenizer
    templates.check(tokenizer, job.template_args)
    corpus = _choose_prompts(job, tokenizer, options)

    def build(work: Path) -> dict[str, Any]:
        journal = Journal(work / ".rows.jsonl", again=REFUSED)  # perhaps the server takes them now
        if not options.overwrite:
            reuse.take_up(options.out, journal, corpus.prompts, job.samples)
        units, misfits = _units(job, corpus.prompts)
        _write_units(job, units, journal, options.workers)
        rows = journal.rows([key_of(prompt) for unit in units for prompt in unit])
        count = sum(len(unit) for unit in units)
        result = datafolder.write(work, rows, Cleaner(rules, corpus.evaluation).reason, count, job.top_k_logprobs)
        tokenizer.save_pretrained(work / "tokenizer")
        _report_soft(result, job.top_k_logprobs)
        result |= templates.inputs(job.template_args)
        return result | _report_skipped(result, [*corpus.faults, *misfits], job.skip_bad)

    return artifact.make(
        options.out,
        "distill",
        _inputs(options, job, corpus, rules),
        build,
        seed=options.seed,
        overwrite=options.overwrite,
        tolerance=artifact.Tolerance(grows="prompts", free=["options.skip_bad"]),
        reads=(options.target, options.prompts, *options.kept_for_evaluation),
    )


def _job(options: DistillOptions, rules: Rules) -> Job:
    """The options as each worker needs them."""
    o = options
    patience = (o.timeout, o.retries, o.retry_wait)
    endpoint = None if o.url is None else Endpoint(o.url, o.served_name or o.target, o.concurrency, *patience)
    return Job(
        folder=checkpoint.find(o.target) if endpoint is None else locate(o.target, weights=False),
        mode=o.mode,
        engine=o.engine,
        endpoint=endpoint,
        sampling=Sampling(o.temperature, o.top_k, o.top_p),
        prompt_sampling=Sampling(o.prompt_temperature),
        max_new_tokens=o.max_new_tokens,
        samples=o.samples,
        top_k_logprobs=o.top_k_logprobs,
        batch_size=o.batch_size,
        seed=o.seed,
        device=o.device,
        dtype=o.dtype,
        max_prompt_tokens=rules.max_prompt_tokens,
        template_args=o.template_args,
        skip_bad=o.skip_bad,
    )


@dataclass(frozen=True)
class Corpus:
    """The prompts to answer, those kept for evaluation, and what is wrong with each row that was skipped."""

    prompts: list[Prompt]
    evaluation: list[Prompt]
    faults: list[str]


def _choose_prompts(job: Job, tokenizer: PreTrainedTokenizerBase, options: DistillOptions) -> Corpus:
    """The first `limit` prompts, or (magpie) as many that are still to be written.

    UserError for prompts that the job cannot answer, and for one that is kept for evaluation.
    """
    evaluation = [prompt for name in options.kept_for_evaluation for prompt in prompts.read(name)]
    source, openings = options.prompts, options.openings
    if source is None:
        magpie.check_openings(openings or [""], tokenizer, job.max_new_tokens, job.context, job.max_prompt_tokens)
        return Corpus(magpie.blanks(options.limit or 0, openings), evaluation, [])
    faults: list[str] = []
    chosen = prompts.read(source, faults if job.skip_bad else None)[: options.limit]
    check_no_overlap(chosen, evaluation)
    templates.require(tokenizer)  # a model without a template is refused before it is loaded
    if job.mode == "rewrite":
        chosen = rewrite.with_references(chosen, faults if job.skip_bad else None)
    return Corpus(chosen, evaluation, faults)


def _inputs(options: DistillOptions, job: Job, corpus: Corpus, rules: Rules) -> dict[str, object]:
    """What the data depend on: the artifact's inputs."""
    how = options.part(DistillSettings)
    return {
        "target": job.folder if job.endpoint is None else checkpoint.identity_files(job.folder),
        "prompts": [[*p.content, *p.references] for p in corpus.prompts],
        "evaluation": [[p.id, *p.turns] for p in corpus.evaluation],
        "rules": dict(rules),
        **templates.inputs(job.template_args),
        "options": {
            **{name: value for name, value in how.items() if name not in ELSEWHERE},
            "sampling": asdict(job.sampling),
            **(
                {"served": job.endpoint.served}
                if job.endpoint
                else {"batch_size": job.batch_size, "device": job.device}
            ),
            "dtype": job.dtype,
        },
    }


def _units(job: Job, chosen: list[Prompt]) -> tuple[list[list[Prompt]], list[str]]:
    """(the prompts that fit the context, in units of work; what is wrong with each of the rest).

    UserError for one that does not fit, unless the job skips such.
    """
    lengths, skipped = [0] * len(chosen), []
    if job.mode != "magpie":
        asked = [rewrite.as_asked(p) for p in chosen] if job.mode == "rewrite" else chosen
        measured = fits(job.tokenizer, asked, job.max_new_tokens, job.context)
        skipped = [why for _, why in measured if why]
        if skipped and not job.skip_bad:
            raise UserError(f"{skipped[0]}, or pass --skip-bad.")
        chosen = [p for p, (_, why) in zip(chosen, measured, strict=True) if not why]
        lengths = [length for length, why in measured if not why]
        if not chosen:
            raise UserError(f"not one prompt can be asked: {skipped[0]}.")
    # a server's rows do not depend on their neighbours: the smaller the unit, the less a kill costs
    return units_of(chosen, lengths, 1 if job.endpoint else GROUP * job.batch_size), skipped


def _write_units(job: Job, units: list[list[Prompt]], journal: Journal, workers: int) -> None:
    """Write the conversations that `journal` lacks, and commit each unit to it."""
    asked = [prompt for unit in units for prompt in unit]
    with track("distilling", sum(len(p.turns) for p in asked) * job.samples, "answers") as tracker:
        tracker.advance(sum(journal.count(key_of(prompt)) for prompt in asked))
        rate = Rate(tracker)
        if workers > 1:
            if job.endpoint:
                job.endpoint.tell_day(job.tokenizer)  # nobody sees what the workers say
            for rows in ray_workers.run_with_ray(units, job, journal, workers):
                rate.add(len(rows), sum(len(row.get("answer_ids", ())) for row in rows))
        else:
            for _ in run_units(units, job.maker(job.writer(), rate), journal, job.concurrency):
                pass


def _report_soft(result: dict[str, Any], k: int) -> None:
    """Say how many rows have no log-probabilities, where these were asked for; UserError where none has."""
    if k and not result["rows_with_topk"]:
        raise UserError(
            f"not one of {result['rows']} rows has log-probabilities that can be learnt from: use a server that names "
            "tokens by id, such as vLLM, or leave out --top-k-logprobs."
        )
    if k and (without := result["rows"] - result["rows_with_topk"]):
        console.print(f"{without} of {result['rows']} rows have no log-probabilities: the server named tokens by text")


def _report_skipped(result: dict[str, Any], reasons: list[str], skip_bad: bool) -> dict[str, int]:
    """What the result says of prompts that were left out (`reasons`), and of turns that a server refused."""
    for reason in reasons[:10]:
        console.print(f"skipped: {reason}", style="dim", soft_wrap=True)
    refused = result["dropped"].get(REFUSED, 0)
    if refused:
        console.print(f"skipped: {refused} answers that the server refused", style="dim", soft_wrap=True)
    return {"skipped": len(reasons) + refused} if skip_bad else {}
