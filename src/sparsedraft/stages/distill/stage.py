"""The `distill` stage: prompts in, a data folder of the target's answers out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft.base import artifact, bounds
from sparsedraft.base.console import console, track
from sparsedraft.base.errors import UserError
from sparsedraft.base.journal import Journal
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.sources import locate
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.templates import Arguments
from sparsedraft.stages.distill import datafolder, magpie, ray_workers, reuse, rewrite
from sparsedraft.stages.distill.cleaner import Cleaner, Rules
from sparsedraft.stages.distill.job import ENGINES, MODES, Job
from sparsedraft.text import prompts
from sparsedraft.text.overlap import check_no_overlap
from sparsedraft.text.prompts import Prompt
from sparsedraft.writers.conversation import REFUSED, Rate, fits
from sparsedraft.writers.server.address import Endpoint
from sparsedraft.writers.server.secret import shown
from sparsedraft.writers.units import GROUP, key_of, run_units, units_of

NEAR = 0.8  # similarity of prompts that magpie drops where no other is asked for


def distill(
    target: str,
    source: str | None,
    out: Path,
    *,
    mode: str = "respond",
    engine: str = "transformers",
    url: str | None = None,
    served_name: str | None = None,
    concurrency: int = 16,
    timeout: float = 300.0,
    retries: int = 6,
    retry_wait: float = 0.5,
    workers: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prompt_temperature: float = 1.0,
    openings: Sequence[str] = (),
    samples: int = 1,
    top_k_logprobs: int = 0,
    batch_size: int = 32,
    limit: int | None = None,
    skip_bad: bool = False,
    rules: Rules | None = None,
    evaluation_prompts: Sequence[str] = (),
    template_args: Arguments | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Let `target` write the data folder `out`: answers to every turn of the prompts in `source`, or (magpie) both.

    Lengths in tokens. `limit` takes the first prompts; for magpie it says how many conversations to try, whose prompts
    begin with `openings` in turns. `template_args` are arguments of the chat template, by name. With
    `evaluation_prompts`, it is an error if one of them is among the prompts, and rows that hold one are left out.
    Raises UserError for bad options, prompts, models or servers.
    """
    _check_options(mode, engine, url, source, limit, samples, temperature, prompt_temperature, top_k_logprobs)
    if openings and mode != "magpie":
        raise UserError(
            f"--opening {openings[0]!r} begins prompts that the target writes: leave it out, or --mode magpie."
        )
    patience = (timeout, retries, retry_wait)
    endpoint = None if url is None else Endpoint(url, served_name or target, concurrency, *patience)
    if engine == "native" and (device, dtype) != ("cpu", "float32"):
        raise UserError(f"--engine native computes in float32 on the CPU, not in {dtype} on {device}: leave these out.")
    rules = rules or Rules()
    if mode == "magpie" and not rules.near_duplicates:
        rules = replace(rules, near_duplicates=NEAR)
    job = Job(
        folder=checkpoint.find(target) if endpoint is None else locate(target, weights=False),
        mode=mode,
        engine=engine,
        endpoint=endpoint,
        sampling=Sampling(temperature, top_k, top_p),
        prompt_sampling=Sampling(prompt_temperature),
        max_new_tokens=max_new_tokens,
        samples=samples,
        top_k_logprobs=top_k_logprobs,
        batch_size=batch_size,
        seed=seed,
        device=device,
        dtype=dtype,
        max_prompt_tokens=rules.max_prompt_tokens,
        template_args=template_args or {},
        skip_bad=skip_bad,
    )
    tokenizer = job.tokenizer
    templates.check(tokenizer, job.template_args)
    corpus = _choose_prompts(job, tokenizer, source, limit, openings, evaluation_prompts)

    def build(work: Path) -> dict[str, Any]:
        journal = Journal(work / ".rows.jsonl", again=REFUSED)  # perhaps the server takes them now
        if not overwrite:
            reuse.take_up(out, journal, corpus.prompts, samples)
        units, misfits = _units(job, corpus.prompts)
        _write_units(job, units, journal, workers)
        rows = journal.rows([key_of(prompt) for unit in units for prompt in unit])
        count = sum(len(unit) for unit in units)
        result = datafolder.write(work, rows, Cleaner(rules, corpus.evaluation).reason, count, top_k_logprobs)
        tokenizer.save_pretrained(work / "tokenizer")
        _report_soft(result, top_k_logprobs)
        result |= templates.inputs(job.template_args)
        return result | _report_skipped(result, [*corpus.faults, *misfits], skip_bad)

    return artifact.make(
        out,
        "distill",
        _inputs(job, corpus, rules),
        build,
        seed=seed,
        overwrite=overwrite,
        tolerance=artifact.Tolerance(grows="prompts", free=["options.skip_bad"]),
        reads=(target, source, *evaluation_prompts),
    )


@dataclass(frozen=True)
class Corpus:
    """The prompts to answer, those kept for evaluation, and what is wrong with each row that was skipped."""

    prompts: list[Prompt]
    evaluation: list[Prompt]
    faults: list[str]


def _choose_prompts(
    job: Job,
    tokenizer: PreTrainedTokenizerBase,
    source: str | None,
    limit: int | None,
    openings: Sequence[str],
    evaluation: Sequence[str],
) -> Corpus:
    """The first `limit` prompts of `source`, or (magpie) as many that are still to be written.

    UserError for prompts that the job cannot answer, and for one that is kept for evaluation.
    """
    kept = [prompt for name in evaluation for prompt in prompts.read(name)]
    if source is None:
        magpie.check_openings(openings or [""], tokenizer, job.max_new_tokens, job.context, job.max_prompt_tokens)
        return Corpus(magpie.blanks(limit or 0, openings), kept, [])
    faults: list[str] = []
    found = prompts.read(source, faults if job.skip_bad else None)[:limit]
    check_no_overlap(found, kept)
    templates.require(tokenizer)  # a model without a template is refused before it is loaded
    if job.mode == "rewrite":
        found = rewrite.with_references(found, faults if job.skip_bad else None)
    return Corpus(found, kept, faults)


def _inputs(job: Job, corpus: Corpus, rules: Rules) -> dict[str, object]:
    """What the data depend on: the artifact's inputs."""
    return {
        "target": job.folder if job.endpoint is None else checkpoint.described(job.folder),
        "prompts": [[*p.described, *p.references] for p in corpus.prompts],
        "evaluation": [[p.id, *p.turns] for p in corpus.evaluation],
        "rules": asdict(rules),
        **templates.inputs(job.template_args),
        "options": {
            "mode": job.mode,
            "engine": job.engine,
            "max_new_tokens": job.max_new_tokens,
            "sampling": asdict(job.sampling),
            "prompt_temperature": job.prompt_sampling.temperature,
            "samples": job.samples,
            "top_k_logprobs": job.top_k_logprobs,
            "skip_bad": job.skip_bad,
            # where and how fast a server answers is no part of what it says
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


def _check_options(
    mode: str,
    engine: str,
    url: str | None,
    source: str | None,
    limit: int | None,
    samples: int,
    temperature: float,
    prompt_temperature: float,
    top_k_logprobs: int,
) -> None:
    """Raise UserError for an option that is not known, and for two that cannot go together."""
    if mode not in MODES:
        raise UserError(f"--mode {mode} is not known: choose one of {', '.join(MODES)}.")
    if engine not in ENGINES:
        raise UserError(f"--engine {engine} is not known: choose one of {', '.join(ENGINES)}.")
    if (engine == "endpoint") != (url is not None):
        raise UserError(
            "--engine endpoint needs --url" if url is None else f"--url {shown(url)} needs --engine endpoint."
        )
    if (mode == "magpie") != (source is None):
        given = "writes the prompts itself: leave out PROMPTS" if source else "needs PROMPTS to answer"
        raise UserError(f"--mode {mode} {given}.")
    if mode == "magpie" and limit is None:
        raise UserError("--mode magpie needs --limit: how many conversations to write.")
    if mode == "magpie" and limit is not None and limit > bounds.CONVERSATIONS:
        raise UserError(
            f"--limit {limit} is more than --mode magpie writes into one folder: give at most {bounds.CONVERSATIONS}, "
            "and make several with other seeds."
        )
    if mode == "magpie" and prompt_temperature == 0:
        raise UserError("--prompt-temperature 0 makes every prompt the same: give 1, for example.")
    if samples > 1 and temperature == 0:
        raise UserError(
            f"--samples {samples} would be {samples} equal answers under greedy decoding: set --temperature."
        )
    if engine == "endpoint" and mode == "rewrite" and top_k_logprobs:
        raise UserError(
            f"--top-k-logprobs {top_k_logprobs} cannot be had for rewritten answers from a server: leave it out, or "
            "use --engine transformers."
        )
