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

from sparsedraft.console import console, leads, quiet_libraries
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
MinP = Annotated[float, typer.Option(help="Leave out tokens less likely than this share of the likeliest; 0 is off.")]
Penalty = Annotated[
    float, typer.Option("--repetition-penalty", help="Divides the logits of tokens seen before; 1 is off.")
]
Uag = Annotated[
    str,
    typer.Option(help="Across tokenizers: realign (as text), intersection (common tokens), auto, or off (an error)."),
]
Tree = Annotated[
    int, typer.Option(min=1, help="Branching of draft trees of K nodes, one prompt at a time; 1 is a chain.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows decoded at once.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first so many prompts.")]
AllowOverlap = Annotated[
    bool, typer.Option("--allow-overlap", help="Go on although evaluation prompts are among them.")
]


def emit(result: dict[str, Any]) -> None:
    """Print the result as the last line on stdout; of several processes, one does."""
    if leads():
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
        sys.stdout.flush()


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
        str, typer.Option(help="transformers (in this process) or endpoint (an OpenAI-compatible server).")
    ] = "transformers",
    url: Annotated[str | None, typer.Option(help="The server's address, such as http://localhost:8000/v1.")] = None,
    served_name: Annotated[str | None, typer.Option(help="The target's name there; default: TARGET.")] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Calls to the server under way at once, of each worker.")
    ] = 16,
    timeout: Annotated[float, typer.Option(min=0.001, help="Longest silence in a call, seconds.")] = 300.0,
    retries: Annotated[int, typer.Option(min=0, help="More tries of a call that failed.")] = 6,
    retry_wait: Annotated[
        float, typer.Option(min=0, help="Wait before the first more try, seconds; it doubles each time, up to 16-fold.")
    ] = 0.5,
    workers: Annotated[
        int, typer.Option(min=1, help="Ray actors, each with its own model or server connection; 1: no Ray.")
    ] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    prompt_temperature: Annotated[float, typer.Option(min=0, help="Temperature of prompts that magpie writes.")] = 1.0,
    samples: Annotated[int, typer.Option(min=1, help="Answers per prompt (more than one needs a temperature).")] = 1,
    top_k_logprobs: Annotated[
        int, typer.Option(min=0, help="Also store the target's so many likeliest tokens, with log-probabilities.")
    ] = 0,
    batch_size: BatchSize = 32,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first so many prompts; for magpie: write so many.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out, and count, prompts that cannot be read or do not fit.")
    ] = False,
    near_duplicates: Annotated[
        float,
        typer.Option(help="Leave out prompts this similar to an earlier one, 0 to 1; 0 is off (magpie: 0.8)."),
    ] = 0.0,
    min_answer_tokens: Annotated[int, typer.Option(min=0, help="Leave out shorter answers, tokens.")] = 0,
    max_answer_tokens: Annotated[int, typer.Option(min=0, help="Leave out longer answers, tokens; 0 is off.")] = 0,
    max_prompt_tokens: Annotated[int, typer.Option(min=0, help="Leave out longer prompts, tokens; 0 is off.")] = 0,
    drop_cut_off: Annotated[bool, typer.Option("--drop-cut-off", help="Leave out answers that were cut off.")] = False,
    languages: Annotated[str, typer.Option(help="Keep only these, such as en,de; default: any.")] = "",
    drop_words: Annotated[str, typer.Option(help="Leave out rows with one of these words, comma-separated.")] = "",
    keep_words: Annotated[str, typer.Option(help="Keep only rows with one of these words, comma-separated.")] = "",
    evaluation: Annotated[
        list[str] | None,
        typer.Option(help="PROMPTS kept for evaluation (as often as you like): an error if one is among these."),
    ] = None,
    allow_overlap: AllowOverlap = False,
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
            samples=samples,
            top_k_logprobs=top_k_logprobs,
            batch_size=batch_size,
            limit=limit,
            skip_bad=skip_bad,
            rules=rules,
            evaluation_prompts=[] if allow_overlap else evaluation or [],
            seed=seed,
            device=device,
            dtype=dtype,
            overwrite=overwrite,
        )
    )


def words(text: str) -> tuple[str, ...]:
    """The words of a comma-separated list."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


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
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for a third more time: keep no activations.")
    ] = False,
    patience: Annotated[
        int,
        typer.Option(
            min=0, help="Validations without a new best acceptance after which to stop and keep the best; 0: off."
        ),
    ] = 0,
    validation_prompts: Annotated[int, typer.Option(min=1, help="Prompts held out for validation.")] = 16,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between validations.")] = 25,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saved states to resume from.")] = 25,
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
            overwrite=overwrite,
        )
    )


@app.command("eval")
def evaluate(
    target: Annotated[str, typer.Argument(help="The target.")],
    drafters: Annotated[list[str], typer.Argument(help="The drafters, each a model, NAME=MODEL, or lookup.")],
    prompts: Annotated[str | None, typer.Option(help="PROMPTS to evaluate on.")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Instead: tasks of lm-eval (names or local YAML files, comma-separated) for target and drafters."
        ),
    ] = None,
    k: Annotated[
        str,
        typer.Option(
            help="Numbers of drafted tokens a step, and policies (auto, confidence, bandit), comma-separated."
        ),
    ] = "1,2,3,5,8",
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    uag: Uag = "auto",
    tree: Tree = 1,
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
    if (prompts is None) == (tasks is None):
        raise UserError("give --prompts to measure drafting, or --tasks for lm-eval: one of the two.")
    named = [named_drafter(d) for d in drafters]
    if tasks is not None:
        from sparsedraft.measure.tasks import run_tasks

        models = [("target", target), *named]
        emit(
            run_tasks(
                models,
                list(words(tasks)),
                out,
                limit=limit,
                batch_size=batch_size,
                seed=seed,
                device=device,
                dtype=dtype,
                overwrite=overwrite,
            )
        )
        return
    from sparsedraft.measure.evaluate import Options, evaluate_to
    from sparsedraft.report.tables import demo_table, spec_bench_table, speed_table

    options = Options(
        k=parse_k(k),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        uag=uag,
        tree=tree,
        simulate=simulate,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        limit=limit,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    result = evaluate_to(out, target, named, str(prompts), options, overwrite=overwrite)
    for table in (demo_table(result), speed_table(result), spec_bench_table(result)):
        if table is not None:
            console.print(table)
    emit(result)


def named_drafter(text: str) -> tuple[str, str]:
    """(name, model) of NAME=MODEL, or of a model alone; a path that exists may hold "=" itself."""
    name, sign, ref = text.partition("=")
    if not sign or Path(text).exists():
        return Path(text).name or text, text
    if not name or not ref:
        raise UserError(f"drafter '{text}' is not of the form NAME=MODEL.")
    return name, ref


def parse_k(text: str) -> tuple[int | str, ...]:
    """ "1,3,5,auto" as numbers and names; UserError for what is neither a number of at least 1 nor a policy."""
    from sparsedraft.measure.evaluate import POLICIES

    found: list[int | str] = []
    for part in (part.strip() for part in text.split(",")):
        if part in POLICIES:
            found.append(part)
            continue
        try:
            number = int(part)
        except ValueError:
            known = ", ".join(POLICIES)
            raise UserError(
                f"--k {text} is not a list of whole numbers and policies ({known}) such as 1,3,auto."
            ) from None
        if number < 1:
            raise UserError(f"--k {number} drafts nothing: K is at least 1.")
        if number > 1024:
            raise UserError(f"--k {number} is more than any drafter is worth: give at most 1024.")
        found.append(number)
    return tuple(found)


@app.command()
def generate(
    target: Annotated[str, typer.Argument(help="The target; the output is exactly its own.")],
    prompt: Annotated[
        list[str],
        typer.Option(help="What the user says (the chat template is put around it); several are decoded at once."),
    ],
    drafter: Annotated[
        str | None, typer.Option(help="A drafter, or 'lookup' (prompt look-up); default: plain decoding.")
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", help="Tokens drafted a step (default 5); for other policies, at most.")
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="How many to draft: constant, auto (what pays best as measured), confidence (stop at doubtful ones) "
            "or bandit (over these)."
        ),
    ] = "constant",
    uag: Uag = "auto",
    tree: Tree = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; as often as you like.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without a chat template.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Say how many tokens each step accepted.")] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Stream text from a target, with or without a drafter."""
    from sparsedraft.generate import stream
    from sparsedraft.speculate.sampling import Sampling

    emit(
        stream(
            target,
            prompt,
            drafter=drafter,
            k=k,
            policy=policy,
            uag=uag,
            tree=tree,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature, top_k, top_p, min_p, repetition_penalty),
            stop=stop or [],
            raw=raw,
            stats=stats,
            seed=seed,
            device=device,
            dtype=dtype,
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


def guarded(command: Callable[[], Any]) -> int:
    """Run `command`; return the exit code: 0 done, 2 the user's mistake in one sentence.

    Anything else is a fault of ours and goes up with its traceback (exit code 1). Of several processes the main one
    speaks; a launcher kills all as soon as one fails, so the others leave it the time to do so.
    """
    try:
        command()
    except (UserError, FloatingPointError) as error:  # NaN comes of weights or an arithmetic that the user chose
        console.print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True)
        return 2 if leads() else 0
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
