"""The command line: one command a stage, each a thin shell around the stage's own function."""

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

import typer
from safetensors import SafetensorError

from sparsedraft.advise.options import AdviseOptions
from sparsedraft.base.command import command
from sparsedraft.base.console import complain, console, leads, quiet_libraries
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import dumps
from sparsedraft.race.options import RaceOptions
from sparsedraft.recipe.options import PlanOptions, RunOptions
from sparsedraft.serve.options import ServeOptions
from sparsedraft.stages.distill.options import DistillOptions
from sparsedraft.stages.evaluate.options import EvaluateOptions
from sparsedraft.stages.export.options import ExportOptions
from sparsedraft.stages.finetune.options import FinetuneOptions
from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.stages.inspect.options import InspectOptions
from sparsedraft.stages.pack.options import PackOptions
from sparsedraft.stages.prune.options import DropLayersOptions, PruneOptions
from sparsedraft.stages.report.options import ReportOptions

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


def run(options: RunOptions) -> None:
    """Do the whole job of a recipe: distill, prune, fine-tune, evaluate, report."""
    from sparsedraft.recipe.reading import read

    recipe = read(options.recipe, options.overrides)
    from sparsedraft.run import run_recipe  # after the recipe: what is wrong with that is said at once

    emit(run_recipe(recipe, options.out, overwrite=options.overwrite))


def plan(options: PlanOptions) -> None:
    """Say what a recipe will cost, stage by stage, from configs alone: tokens, memory, device-hours, disk."""
    from sparsedraft.recipe.reading import read

    recipe = read(options.recipe, options.overrides)
    from sparsedraft.plan import plan_recipe, running_table, table

    result = plan_recipe(recipe, gflops=options.gflops, context_length=options.context_length)
    console.print(table(result))
    if result["running"]:
        console.print(running_table(result))
    emit(result)


def distill(options: DistillOptions) -> None:
    """Let the target write the answers that the drafter will learn from."""
    from sparsedraft.stages.distill.stage import distill as stage

    emit(stage(options))


def prune(options: PruneOptions) -> None:
    """Prune every decoder linear of a model in one shot."""
    from sparsedraft.stages.prune.stage import prune as stage

    emit(stage(options))


def drop_layers(options: DropLayersOptions) -> None:
    """Drop the consecutive block of layers with the smallest angular distance."""
    from sparsedraft.stages.prune.drop_layers import drop_layers as stage

    emit(stage(options))


def inspect(options: InspectOptions) -> None:
    """Show what a checkpoint is made of: shape, sparsity and pattern of every linear, MACs, parameters, bytes."""
    from sparsedraft.stages.inspect.stage import inspect as stage
    from sparsedraft.stages.inspect.stage import table

    result = stage(options)
    console.print(table(result))
    emit(result)


def finetune(options: FinetuneOptions) -> None:
    """Fine-tune a drafter on distilled data with its mask held.

    In several processes: accelerate launch --multi_gpu --num_processes N --module sparsedraft finetune ...
    (--use_fsdp --fsdp_version 2 instead of --multi_gpu shards weights and moments over them.)
    """
    from sparsedraft.stages.finetune.stage import finetune as stage

    emit(stage(options))


def report(options: ReportOptions) -> None:
    """Write the report of a run or of distilled data: one self-contained HTML file, and Markdown."""
    from sparsedraft.stages.report.stage import report as stage

    emit(stage(options))


def evaluate(options: EvaluateOptions) -> None:
    """Measure drafters against a target: MAL, acceptance, MACs, improvement factor."""
    from sparsedraft.stages.evaluate.stage import evaluate as stage
    from sparsedraft.stages.report.tables import demo_table, spec_bench_table, speed_table

    result = stage(options)
    if options.tasks is None:
        for table in (demo_table(result), speed_table(result), spec_bench_table(result)):
            if table is not None:
                console.print(table)
    emit(result)


def advise(options: AdviseOptions) -> None:
    """Say how to run a target fastest on this machine: which drafter, K, window and look-up, measured on your prompts.

    It also tells what other bits and patterns would cost, and what `generate` starts from when K is auto.
    """
    from sparsedraft.advise.stage import advise as stage
    from sparsedraft.advise.tables import tables

    result = stage(options)
    for table in tables(result):
        console.print(table)
    emit(result)


def generate(options: GenerateOptions) -> None:
    """Stream text from a target, with or without a drafter."""
    from sparsedraft.stages.generate.stage import generate as stage

    emit(stage(options))


def race(options: RaceOptions) -> None:
    """Let the target write one answer alone and with each drafter, show them side by side, and say who was fastest.

    Text of accepted drafts is in colour. One after the other they have the whole machine; in a terminal all are then
    shown at once, each at its own speed.
    """
    from sparsedraft.race.stage import race as stage
    from sparsedraft.race.view import table

    result = stage(options)
    console.print(table(result))
    emit(result)


def serve(options: ServeOptions) -> None:
    """Serve a target, with or without a drafter, to OpenAI's clients: chats and completions, whole or streamed.

    Several answers are written at once, each exactly the target's own. /health and /metrics say how it does.
    """
    from sparsedraft.serve.stage import serve as stage

    emit(stage(options))


def pack(options: PackOptions) -> None:
    """Pack a checkpoint: its zeros left out, its values rounded if asked; what runs fast on a CPU."""
    from sparsedraft.stages.pack.stage import pack as stage

    emit(stage(options))


def export(options: ExportOptions) -> None:
    """Write a checkpoint, packed or not, as a GGUF file, which llama.cpp's programs run.

    Zeros stay zeros. Codes of int4 go over bit for bit, into q4_0 and q8_0; codes of int8 into q8_0, their scales in
    float16. Of llama, mistral, qwen2 and qwen3 with byte-level BPE.
    """
    from sparsedraft.stages.export.stage import export as stage

    emit(stage(options))


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "run": (RunOptions, run),
    "plan": (PlanOptions, plan),
    "distill": (DistillOptions, distill),
    "prune": (PruneOptions, prune),
    "drop-layers": (DropLayersOptions, drop_layers),
    "inspect": (InspectOptions, inspect),
    "finetune": (FinetuneOptions, finetune),
    "report": (ReportOptions, report),
    "eval": (EvaluateOptions, evaluate),
    "advise": (AdviseOptions, advise),
    "generate": (GenerateOptions, generate),
    "race": (RaceOptions, race),
    "serve": (ServeOptions, serve),
    "pack": (PackOptions, pack),
    "export": (ExportOptions, export),
}
for _name, (_options, _work) in COMMANDS.items():
    app.command(_name)(command(_options, _work))


def emit(result: dict[str, Any]) -> None:
    """Print the result as the last line on stdout; of several processes, one does."""
    if leads():
        sys.stdout.write(dumps(result) + "\n")
        sys.stdout.flush()


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
        if _out_of_memory(error):
            complain(NO_MEMORY)
            return 2
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
        complain(NO_MEMORY)
        return 2 if leads() else 0
    return 0


NO_MEMORY = (
    "there is not enough memory: close something, or ask for less at once (such as a smaller --batch-size or "
    "--sequence-length), then run the same command again."
)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's or the native engine's (MemoryError), the system's, or torch's on any device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)  # of an OSError, too, and of those that wrap one
    return os.strerror(errno.ENOMEM) in text or ("DefaultCPUAllocator" in text and "memory" in text)


def main() -> None:
    """Entry point of the `sparsedraft` command. Typer itself exits with 2 for wrong options and 0 for --help."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    sys.exit(guarded(app))
