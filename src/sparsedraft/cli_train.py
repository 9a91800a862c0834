"""The commands with the most options: distill and finetune."""

from pathlib import Path
from typing import Annotated

import typer

from sparsedraft.base import bounds
from sparsedraft.base.errors import UserError
from sparsedraft.options import (
    AllowOverlap,
    BatchSize,
    Device,
    Dtype,
    MaxNewTokens,
    Out,
    Overwrite,
    Seed,
    SequenceLength,
    Temperature,
    TemplateArg,
    TopK,
    TopP,
    emit,
    template_args,
    words,
)


def distill(
    target: Annotated[str, typer.Argument(help="The model that writes the answers.")],
    prompts: Annotated[str | None, typer.Argument(help="PROMPTS to answer; none for --mode magpie.")] = None,
    *,
    out: Out,
    mode: Annotated[
        str,
        typer.Option(
            help="respond: the target answers each turn; rewrite: it writes reference answers in its own words; "
            "magpie: it writes the prompts, too."
        ),
    ] = "respond",
    engine: Annotated[
        str, typer.Option(help="transformers or native (in this process), or endpoint (an OpenAI-compatible server).")
    ] = "transformers",
    url: Annotated[str | None, typer.Option(help="The server's address, such as http://localhost:8000/v1.")] = None,
    served_name: Annotated[str | None, typer.Option(help="The target's name there; default: TARGET.")] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=bounds.CALLS, help="Calls to the server under way at once, of each worker.")
    ] = 16,
    timeout: Annotated[
        float,
        typer.Option(min=0.001, help="Longest silence in a call, seconds; a whole call may take 4 times as long."),
    ] = 300.0,
    retries: Annotated[int, typer.Option(min=0, max=bounds.RETRIES, help="More tries of a call that failed.")] = 6,
    retry_wait: Annotated[
        float, typer.Option(min=0, help="Wait before the first more try, seconds; it doubles each time, up to 16-fold.")
    ] = 0.5,
    workers: Annotated[
        int,
        typer.Option(
            min=1, max=bounds.WORKERS, help="Ray actors, each with its own model or server connection; 1: no Ray."
        ),
    ] = 1,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    prompt_temperature: Annotated[float, typer.Option(min=0, help="Temperature of prompts that magpie writes.")] = 1.0,
    opening: Annotated[
        list[str] | None,
        typer.Option(help="How prompts that magpie writes begin (as often as you like: they take turns)."),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, max=bounds.SAMPLES, help="Answers per prompt (more than one needs a temperature).")
    ] = 1,
    top_k_logprobs: Annotated[
        int,
        typer.Option(
            min=0,
            max=bounds.LIKELIEST,
            help="Also store the target's so many likeliest tokens, with log-probabilities.",
        ),
    ] = 0,
    batch_size: BatchSize = 32,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=bounds.PROMPTS, help="Use only the first so many prompts; for magpie: write so many."),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Leave out, and count, prompts that cannot be read, do not fit, or that a server refuses.",
        ),
    ] = False,
    near_duplicates: Annotated[
        float,
        typer.Option(help="Leave out prompts this similar to an earlier one, 0 to 1; 0 is off (magpie: 0.8)."),
    ] = 0.0,
    min_answer_tokens: Annotated[
        int, typer.Option(min=0, max=bounds.LENGTH, help="Leave out shorter answers, tokens.")
    ] = 0,
    max_answer_tokens: Annotated[
        int, typer.Option(min=0, max=bounds.LENGTH, help="Leave out longer answers, tokens; 0 is off.")
    ] = 0,
    max_prompt_tokens: Annotated[
        int, typer.Option(min=0, max=bounds.LENGTH, help="Leave out longer prompts, tokens; 0 is off.")
    ] = 0,
    drop_cut_off: Annotated[bool, typer.Option("--drop-cut-off", help="Leave out answers that were cut off.")] = False,
    languages: Annotated[str, typer.Option(help="Keep only these, such as en,de; default: any.")] = "",
    drop_words: Annotated[str, typer.Option(help="Leave out rows with one of these words, comma-separated.")] = "",
    keep_words: Annotated[str, typer.Option(help="Keep only rows with one of these words, comma-separated.")] = "",
    evaluation: Annotated[
        list[str] | None,
        typer.Option(help="PROMPTS kept for evaluation (as often as you like): an error if one is among these."),
    ] = None,
    allow_overlap: AllowOverlap = False,
    template_arg: TemplateArg = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
) -> None:
    """Let the target write the answers that the drafter will learn from."""
    from sparsedraft.stages.distill.cleaner import Rules
    from sparsedraft.stages.distill.stage import distill as stage

    rules = Rules(
        near_duplicates=near_duplicates,
        min_answer_tokens=min_answer_tokens,
        max_answer_tokens=max_answer_tokens,
        max_prompt_tokens=max_prompt_tokens,
        drop_cut_off=drop_cut_off,
        languages=words(languages),
        drop_words=words(drop_words),
        keep_words=words(keep_words),
    )
    emit(
        stage(
            target,
            prompts,
            out,
            mode=mode,
            engine=engine,
            url=url,
            served_name=served_name,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            retry_wait=retry_wait,
            workers=workers,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            prompt_temperature=prompt_temperature,
            openings=opening or [],
            samples=samples,
            top_k_logprobs=top_k_logprobs,
            batch_size=batch_size,
            limit=limit,
            skip_bad=skip_bad,
            rules=rules,
            evaluation_prompts=[] if allow_overlap else evaluation or [],
            template_args=template_args(template_arg),
            seed=seed,
            device=device,
            dtype=dtype,
            overwrite=overwrite,
        )
    )


def finetune(
    drafter: Annotated[str, typer.Argument(help="The drafter to train; its zeros stay zeros.")],
    data: Annotated[Path, typer.Argument(help="Distilled data folder.")],
    out: Out,
    loss: Annotated[
        str, typer.Option(help="nll; or against the target's distributions: kl, reverse-kl, tvd (1 minus acceptance).")
    ] = "nll",
    nll_weight: Annotated[
        float, typer.Option(help="w of (1-w) x loss + w x nll, 0 to 1, for a loss other than nll.")
    ] = 0.0,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The target that wrote DATA, for a loss other than nll; default: the log-probabilities in DATA."
        ),
    ] = None,
    on_policy: Annotated[
        float, typer.Option(help="Share of rows, 0 to 1, that the drafter writes itself and the teacher scores.")
    ] = 0.0,
    feature_teacher: Annotated[
        str | None, typer.Option(help="The dense drafter, whose hidden states SquareHead compares with.")
    ] = None,
    feature_weight: Annotated[float, typer.Option(help="Weight of SquareHead beside the loss; 0 is off.")] = 0.0,
    quantize: Annotated[
        str,
        typer.Option(help="Train the linears for rounding to int8 (scale per row) or int4 (per 32 inputs); or none."),
    ] = "none",
    reselect_every: Annotated[
        int,
        typer.Option(
            min=0, max=bounds.STEPS, help="Let the mask move every so many steps, until 75 % of them; 0: it stays."
        ),
    ] = 0,
    reselect_share: Annotated[
        float, typer.Option(help="Share of the surviving weights that the first move swaps; falls to 0 by a cosine.")
    ] = 0.1,
    tokens: Annotated[
        int | None, typer.Option(min=1, max=bounds.TOKENS, help="Tokens to train on; default: each sample once.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 1e-4,
    warmup: Annotated[float, typer.Option(min=0, max=1, help="Share of the steps to warm up.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(min=0, help="AdamW's decoupled weight decay.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Largest norm of a step's gradient.")] = 1.0,
    sequence_length: SequenceLength = 512,
    rows_per_step: Annotated[
        int, typer.Option(min=1, max=bounds.ROWS, help="Packed sequences per optimizer step.")
    ] = 2,
    train_embeddings: Annotated[bool, typer.Option(help="Train the embedding and the head, too.")] = True,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for a third more time: keep no activations.")
    ] = False,
    patience: Annotated[
        int,
        typer.Option(
            min=0,
            max=bounds.STEPS,
            help="Validations without a new best acceptance after which to stop and keep the best; 0: off.",
        ),
    ] = 0,
    validation_prompts: Annotated[
        int, typer.Option(min=1, max=bounds.PROMPTS, help="Prompts held out for validation.")
    ] = 16,
    validate_every: Annotated[int, typer.Option(min=1, max=bounds.STEPS, help="Steps between validations.")] = 25,
    save_every: Annotated[
        int, typer.Option(min=1, max=bounds.STEPS, help="Steps between saved states to resume from.")
    ] = 25,
    template_arg: TemplateArg = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Arithmetic: float32 or bfloat16; weights and moments are float32 in both.")
    ] = "float32",
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a drafter on distilled data with its mask held.

    In several processes: accelerate launch --multi_gpu --num_processes N --module sparsedraft finetune ...
    (--use_fsdp --fsdp_version 2 instead of --multi_gpu shards weights and moments over them.)
    """
    from sparsedraft.stages.finetune.loop import Settings
    from sparsedraft.stages.finetune.stage import finetune as stage

    if not 0 < learning_rate < 1:
        raise UserError(f"--learning-rate {learning_rate:g} is not between 0 and 1; 1e-4 is a good start.")
    if not clip > 0:
        raise UserError(f"--clip {clip:g} is not above 0; 1 is a good start.")
    settings = Settings(
        loss=loss,
        nll_weight=nll_weight,
        on_policy=on_policy,
        feature_weight=feature_weight,
        quantize=quantize,
        reselect_every=reselect_every,
        reselect_share=reselect_share,
        tokens=tokens,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        sequence_length=sequence_length,
        rows_per_step=rows_per_step,
        train_embeddings=train_embeddings,
        gradient_checkpointing=gradient_checkpointing,
        patience=patience,
        validate_every=validate_every,
        save_every=save_every,
        seed=seed,
    )
    emit(
        stage(
            drafter,
            str(data),
            out,
            settings=settings,
            teacher=teacher,
            feature_teacher=feature_teacher,
            validation_prompts=validation_prompts,
            device=device,
            dtype=dtype,
            template_args=template_args(template_arg),
            overwrite=overwrite,
        )
    )
