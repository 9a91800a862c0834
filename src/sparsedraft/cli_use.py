"""The commands that use drafters: eval, generate and pack."""

from pathlib import Path
from typing import Annotated

import typer

from sparsedraft.base import bounds
from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.options import (
    BatchSize,
    Device,
    Dtype,
    Limit,
    MaxNewTokens,
    MinP,
    Out,
    Overwrite,
    Penalty,
    Runtime,
    Seed,
    Temperature,
    TemplateArg,
    TopK,
    TopP,
    Tree,
    Uag,
    emit,
    template_args,
    words,
)

DRAFTING = (
    "k", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "uag", "tree", "simulate", "max_new_tokens",
    "spread", "runtime", "url", "served_name", "concurrency", "template_arg",
)  # fmt: skip


def evaluate(
    context: typer.Context,
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
        bool,
        typer.Option(
            "--simulate",
            help="The loop's numbers without its target passes (sampled: expected ones).",
        ),
    ] = False,
    max_new_tokens: MaxNewTokens = 128,
    batch_size: BatchSize = 32,
    limit: Limit = None,
    spread: Annotated[
        bool, typer.Option("--spread", help="Take --limit prompts at equal distances through the file, not the first.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result and its raw rows; default: kept nowhere.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server that runs the target, .../v1; with --simulate, greedily."),
    ] = None,
    served_name: Annotated[str | None, typer.Option(help="The target's name there; default: TARGET.")] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=bounds.CALLS, help="Calls to the server under way at once.")
    ] = 16,
    template_arg: TemplateArg = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    runtime: Runtime = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Measure drafters against a target: MAL, acceptance, MACs, improvement factor."""
    if (prompts is None) == (tasks is None):
        raise UserError("give --prompts to measure drafting, or --tasks for lm-eval: one of the two.")
    named = [named_drafter(d) for d in drafters]
    if tasks is not None:
        sources = {name: context.get_parameter_source(name) for name in DRAFTING}
        given = next((name for name, source in sources.items() if source and source.name == "COMMANDLINE"), None)
        if given is not None:
            option = f"--{given.replace('_', '-')}"
            raise UserError(f"{option} is about drafting, and --tasks scores each model alone: leave one of them out.")
        from sparsedraft.stages.evaluate.tasks import run_tasks

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
    from sparsedraft.stages.evaluate.options import Options
    from sparsedraft.stages.evaluate.stage import evaluate_to
    from sparsedraft.stages.report.tables import demo_table, spec_bench_table, speed_table

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
        spread=spread,
        url=url,
        served_name=served_name,
        concurrency=concurrency,
        seed=seed,
        device=device,
        dtype=dtype,
        runtime=runtime,
        template_args=template_args(template_arg),
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
    from sparsedraft.stages.evaluate.options import POLICIES

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
        if number > bounds.DRAFTED:
            raise UserError(f"--k {number} is more than any drafter is worth: give at most {bounds.DRAFTED}.")
        found.append(number)
    return tuple(found)


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
        int | None,
        typer.Option(
            "--k", min=0, max=bounds.DRAFTED, help="Tokens drafted a step (default 5); for other policies, at most."
        ),
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
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; as often as you like.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without a chat template.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Say how many tokens each step accepted.")] = False,
    template_arg: TemplateArg = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    runtime: Runtime = "auto",
) -> None:
    """Stream text from a target, with or without a drafter."""
    from sparsedraft.maths.sampling import Sampling
    from sparsedraft.stages.generate.stage import stream

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
            runtime=runtime,
            template_args=template_args(template_arg),
        )
    )


def pack(
    model: Annotated[str, typer.Argument(help="The checkpoint to pack.")],
    out: Out,
    weights: Annotated[
        str, typer.Option(help="Type of the values: f16, bf16, or int8 (rounded, one scale for each row).")
    ] = "int8",
    head_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, max=bounds.VOCABULARY, help="Trim the head to so many tokens, the most frequent in --head-data."
        ),
    ] = None,
    head_data: Annotated[str | None, typer.Option(help="Distilled data folder of the target.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Pack a checkpoint: its zeros left out, its values rounded if asked; what runs fast on a CPU."""
    from sparsedraft.stages.pack.stage import pack as stage

    emit(stage(model, out, weights=weights, head_tokens=head_tokens, head_data=head_data, overwrite=overwrite))
