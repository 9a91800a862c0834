"""The command line: one command a stage, each a thin shell around the stage's own function."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors import SafetensorError

from sparsedraft import bounds
from sparsedraft.cli_use import evaluate, generate, pack
from sparsedraft.console import complain, console, leads, quiet_libraries
from sparsedraft.errors import UserError
from sparsedraft.options import (
    AllowOverlap,
    BatchSize,
    Calibration,
    CalibrationTokens,
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

# what the system says of a path that is not as it should be
UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Turn a draft LLM into a sparse, self-distilled drafter for a target LLM, and measure how much it helps. "
    "MODEL, TARGET and DRAFTER are a Hugging Face id, a checkpoint folder or a .gguf file. PROMPTS are JSON lines, an "
    "array or parquet with prompt, messages, conversations, turns, chosen or instruction, a datasets id, or "
    "demo:train / demo:eval. "
    "Each command ends with one JSON object on stdout.",
)


@app.callback()
def _launched(context: typer.Context) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and context.invoked_subcommand != "finetune":
        raise UserError(f"'{context.invoked_subcommand}' works in one process: launch several for 'finetune' alone.")


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value, as many as you like.")] = None,
    out: Out = Path("runs/run"),
    overwrite: Overwrite = False,
) -> None:
    """Do the whole job of a recipe: distill, prune, fine-tune, evaluate, report."""
    from sparsedraft import recipe as recipes
    from sparsedraft.run import run_recipe

    emit(run_recipe(recipes.read(recipe, overrides or []), out, overwrite=overwrite))


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value, as many as you like.")] = None,
    gflops: Annotated[
        float | None, typer.Option(min=0.001, help="Device speed, Gflop/s; default: measured here.")
    ] = None,
) -> None:
    """Say what a recipe will cost, stage by stage, from configs alone: tokens, memory, device-hours, disk."""
    from sparsedraft import recipe as recipes
    from sparsedraft.plan import plan_recipe, table

    result = plan_recipe(recipes.read(recipe, overrides or []), gflops=gflops)
    console.print(table(result))
    emit(result)


@app.command()
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
    from sparsedraft.distill.clean import Rules
    from sparsedraft.distill.stage import distill as stage

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


@app.command()
def prune(
    model: Annotated[str, typer.Argument(help="The drafter to prune.")],
    out: Out,
    calibration: Calibration,
    pattern: Annotated[str, typer.Option(help="unstructured, or N:M such as 2:4.")] = "unstructured",
    sparsity: Annotated[
        float | None, typer.Option(help="Share of each linear's weights to prune; default 0.5, or what N:M gives.")
    ] = None,
    method: Annotated[str, typer.Option(help="sparsegpt, wanda or magnitude.")] = "sparsegpt",
    allocation: Annotated[
        str,
        typer.Option(help="uniform, owl (outlier-weighted layers) or auto (least sum of measured errors, equal MACs)."),
    ] = "uniform",
    refine: Annotated[
        bool, typer.Option("--refine", help="Re-solve the weights that are left, with the mask fixed.")
    ] = False,
    tokens: CalibrationTokens = 65536,
    sequence_length: SequenceLength = 512,
    template_arg: TemplateArg = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
) -> None:
    """Prune every decoder linear of a model in one shot."""
    from sparsedraft.prune.stage import prune as stage

    emit(
        stage(
            model,
            out,
            calibration,
            pattern=pattern,
            sparsity=sparsity,
            method=method,
            allocation=allocation,
            refine=refine,
            tokens=tokens,
            sequence_length=sequence_length,
            seed=seed,
            device=device,
            dtype=dtype,
            template_args=template_args(template_arg),
            overwrite=overwrite,
        )
    )


@app.command("drop-layers")
def drop_layers(
    model: Annotated[str, typer.Argument(help="The drafter to cut.")],
    out: Out,
    calibration: Calibration,
    layers: Annotated[
        int | None, typer.Option(min=1, max=bounds.LAYERS, help="How many consecutive layers to drop.")
    ] = None,
    match_macs: Annotated[
        str | None, typer.Option(help="Drop as many as bring the MACs nearest to this checkpoint's.")
    ] = None,
    tokens: CalibrationTokens = 65536,
    sequence_length: SequenceLength = 512,
    template_arg: TemplateArg = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
) -> None:
    """Drop the consecutive block of layers with the smallest angular distance."""
    from sparsedraft.prune.drop_stage import drop_layers as stage

    emit(
        stage(
            model,
            out,
            calibration,
            layers=layers,
            match_macs=match_macs,
            tokens=tokens,
            sequence_length=sequence_length,
            seed=seed,
            device=device,
            dtype=dtype,
            template_args=template_args(template_arg),
            overwrite=overwrite,
        )
    )


@app.command()
def inspect(
    checkpoint: Annotated[str, typer.Argument(help="A Hugging Face id, a checkpoint folder or a .gguf file.")],
) -> None:
    """Show what a checkpoint is made of: shape, sparsity and pattern of every linear, MACs, parameters, bytes."""
    from sparsedraft.inspection import inspect as look
    from sparsedraft.inspection import table

    result = look(checkpoint)
    console.print(table(result))
    emit(result)


@app.command()
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
    from sparsedraft.finetune.loop import Settings
    from sparsedraft.finetune.stage import finetune as stage

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


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run, or of distilled data.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the report of a run or of distilled data: one self-contained HTML file, and Markdown."""
    from sparsedraft.report.stage import report as stage

    emit(stage(folder, overwrite=overwrite))


app.command("eval")(evaluate)
app.command()(generate)
app.command()(pack)


def guarded(command: Callable[[], Any]) -> int:
    """Run `command`; return the exit code: 0 done, 2 the user's mistake in one sentence.

    Anything else is a fault of ours and goes up with its traceback (exit code 1). Of several processes the main one
    speaks; a launcher kills all as soon as one fails, so the others leave it the time to do so.
    """
    try:
        command()
    except (UserError, FloatingPointError) as error:  # NaN comes of weights or an arithmetic that the user chose
        complain(str(error))
        return 2 if leads() else 0
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            complain(f"{str(error.filename)[:60]}… is too long a name: shorten it.")
            return 2
        if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename:
            complain(f"{error.filename} cannot be used ({error.strerror}): check the path and its permissions.")
            return 2
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and "No space left" not in str(error):
            raise
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        complain(f"the disk is full{where}: free space, then run the same command again.")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        complain(
            "there is not enough memory: close something, or ask for less at once (such as a smaller --batch-size or "
            "--sequence-length), then run the same command again."
        )
        return 2 if leads() else 0
    return 0


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory ran out: Python's or the native engine's (MemoryError), or torch's, on a CPU or another device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return "DefaultCPUAllocator" in str(error) and "memory" in str(error)


def main() -> None:
    """Entry point of the `sparsedraft` command. Typer itself exits with 2 for wrong options and 0 for --help."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    sys.exit(guarded(app))
