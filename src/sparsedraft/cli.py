"""The command line: one command a stage, each a thin shell around the stage's own function."""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors import SafetensorError

from sparsedraft.console import console, quiet_libraries
from sparsedraft.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Turn a draft LLM into a sparse, self-distilled drafter for a target LLM, and measure how much it helps. "
    "MODEL, TARGET and DRAFTER are a Hugging Face id, a checkpoint folder or a .gguf file. PROMPTS are JSON lines or "
    "parquet with prompt, messages, turns or instruction, a datasets id, or demo:train / demo:eval. "
    "Each command ends with one JSON object on stdout.",
)

Out = Annotated[Path, typer.Option(help="Folder to write; must be new, empty, or this command's own earlier result.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="torch device: cpu, cuda, cuda:1, mps, ...")]
Dtype = Annotated[str, typer.Option(help="Arithmetic: float32, bfloat16 or float16.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output folder holds.")]
Calibration = Annotated[str, typer.Option(help="Distilled data folder, or PROMPTS, to calibrate on.")]
CalibrationTokens = Annotated[int, typer.Option("--tokens", min=1, help="Calibration tokens.")]
SequenceLength = Annotated[int, typer.Option(min=2, help="Length of a packed sequence, tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")]
TopK = Annotated[int, typer.Option(min=0, help="Sample among the k likeliest tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Sample among the likeliest tokens of this total probability; 1 is off.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows decoded at once.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first so many prompts.")]
AllowOverlap = Annotated[
    bool, typer.Option("--allow-overlap", help="Go on although evaluation prompts are among them.")
]


def emit(result: dict[str, Any]) -> None:
    """Print the result as the last line on stdout."""
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
    sys.stdout.flush()


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
    prompts: Annotated[str, typer.Argument(help="PROMPTS to answer.")],
    out: Out,
    mode: Annotated[str, typer.Option(help="How the data is made; respond: the target answers each turn.")] = "respond",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    samples: Annotated[int, typer.Option(min=1, help="Answers per prompt (more than one needs a temperature).")] = 1,
    top_k_logprobs: Annotated[
        int, typer.Option(min=0, help="Also store the target's so many likeliest tokens, with log-probabilities.")
    ] = 0,
    batch_size: BatchSize = 32,
    limit: Limit = None,
    evaluation: Annotated[
        str | None, typer.Option(help="PROMPTS kept for evaluation: an error if any is among these.")
    ] = None,
    allow_overlap: AllowOverlap = False,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
) -> None:
    """Let the target write the answers that the drafter will learn from."""
    from sparsedraft.distill.stage import distill as stage

    emit(
        stage(
            target,
            prompts,
            out,
            mode=mode,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            samples=samples,
            top_k_logprobs=top_k_logprobs,
            batch_size=batch_size,
            limit=limit,
            evaluation_prompts=None if allow_overlap else evaluation,
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
            overwrite=overwrite,
        )
    )


@app.command("drop-layers")
def drop_layers(
    model: Annotated[str, typer.Argument(help="The drafter to cut.")],
    out: Out,
    calibration: Calibration,
    layers: Annotated[int | None, typer.Option(min=1, help="How many consecutive layers to drop.")] = None,
    match_macs: Annotated[
        str | None, typer.Option(help="Drop as many as bring the MACs nearest to this checkpoint's.")
    ] = None,
    tokens: CalibrationTokens = 65536,
    sequence_length: SequenceLength = 512,
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
        int, typer.Option(min=0, help="Let the mask move every so many steps, until 75 % of them; 0: it stays.")
    ] = 0,
    reselect_share: Annotated[
        float, typer.Option(help="Share of the surviving weights that the first move swaps; falls to 0 by a cosine.")
    ] = 0.1,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to train on; default: each sample once.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 1e-4,
    warmup: Annotated[float, typer.Option(min=0, max=1, help="Share of the steps to warm up.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(min=0, help="AdamW's decoupled weight decay.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Largest norm of a step's gradient.")] = 1.0,
    sequence_length: SequenceLength = 512,
    rows_per_step: Annotated[int, typer.Option(min=1, help="Packed sequences per optimizer step.")] = 2,
    train_embeddings: Annotated[bool, typer.Option(help="Train the embedding and the head, too.")] = True,
    validation_prompts: Annotated[int, typer.Option(min=1, help="Prompts held out for validation.")] = 16,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between validations.")] = 25,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saved states to resume from.")] = 25,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a drafter on distilled data with its mask held."""
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
            overwrite=overwrite,
        )
    )


@app.command("eval")
def evaluate(
    target: Annotated[str, typer.Argument(help="The target.")],
    drafters: Annotated[list[str], typer.Argument(help="The drafters, each a model or NAME=MODEL.")],
    prompts: Annotated[str, typer.Option(help="PROMPTS to evaluate on.")],
    k: Annotated[str, typer.Option(help="Numbers of drafted tokens a step, comma-separated.")] = "1,2,3,5,8",
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Same greedy numbers from one teacher-forced pass per drafter.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 128,
    batch_size: BatchSize = 32,
    limit: Limit = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result and its raw rows; default: kept nowhere.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
) -> None:
    """Measure drafters against a target: MAL, acceptance, MACs, improvement factor."""
    from sparsedraft.measure.evaluate import Options, evaluate_to
    from sparsedraft.report.tables import demo_table

    options = Options(
        k=parse_k(k),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        simulate=simulate,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        limit=limit,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    result = evaluate_to(out, target, [named_drafter(d) for d in drafters], prompts, options, overwrite=overwrite)
    console.print(demo_table(result))
    emit(result)


def named_drafter(text: str) -> tuple[str, str]:
    """(name, model) of NAME=MODEL, or of a model alone; a path that exists may hold "=" itself."""
    name, sign, ref = text.partition("=")
    if not sign or Path(text).exists():
        return Path(text).name or text, text
    if not name or not ref:
        raise UserError(f"drafter '{text}' is not of the form NAME=MODEL.")
    return name, ref


def parse_k(text: str) -> tuple[int, ...]:
    """ "1,3,5" as numbers; UserError unless each is a whole number of at least 1."""
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise UserError(f"--k {text} is not a list of whole numbers such as 1,3,5.") from None
    if numbers[0] < 1:
        raise UserError(f"--k {numbers[0]} drafts nothing: K is at least 1.")
    if numbers[-1] > 1024:
        raise UserError(f"--k {numbers[-1]} is more than any drafter is worth: give at most 1024.")
    return numbers


@app.command()
def generate(
    target: Annotated[str, typer.Argument(help="The target; the output is exactly its own.")],
    prompt: Annotated[str, typer.Option(help="What the user says (the chat template is put around it).")],
    drafter: Annotated[
        str | None, typer.Option(help="A drafter with the same tokenizer; default: plain decoding.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Tokens drafted a step, at least 1.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without a chat template.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Say how many tokens each step accepted.")] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Stream text from a target, with or without a drafter."""
    from sparsedraft.generate import stream

    emit(
        stream(
            target,
            prompt,
            drafter=drafter,
            k=parse_k(str(k))[0],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            raw=raw,
            stats=stats,
            seed=seed,
            device=device,
            dtype=dtype,
        )
    )


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a finished run.")], overwrite: Overwrite = False
) -> None:
    """Write the report of a run: one self-contained HTML file, and Markdown."""
    from sparsedraft.report.stage import report as stage

    emit(stage(run_dir, overwrite=overwrite))


def guarded(command: Callable[[], Any]) -> int:
    """Run `command`; return the exit code: 0 done, 2 the user's mistake in one sentence.

    Anything else is a fault of ours and goes up with its traceback (exit code 1).
    """
    try:
        command()
    except UserError as error:
        console.print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True)
        return 2
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            console.print(f"[bold red]error:[/] {_escaped(str(error.filename))[:60]}… is too long a name: shorten it.")
            return 2
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and "No space left" not in str(error):
            raise
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        console.print(f"[bold red]error:[/] the disk is full{where}: free space, then run the same command again.")
        return 2
    return 0


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def main() -> None:
    """Entry point of the `sparsedraft` command. Typer itself exits with 2 for wrong options and 0 for --help."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    sys.exit(guarded(app))
