"""The command line: one command a stage, each a thin shell around the stage's own function."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors import SafetensorError

from sparsedraft.base.command import command
from sparsedraft.base.console import complain, console, leads, quiet_libraries
from sparsedraft.base.errors import UserError
from sparsedraft.cli_train import distill, finetune
from sparsedraft.cli_use import evaluate, generate, pack
from sparsedraft.options import Out, Overwrite, emit
from sparsedraft.stages.prune.options import DropLayersOptions, PruneOptions

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


app.command()(distill)


def prune(options: PruneOptions) -> None:
    """Prune every decoder linear of a model in one shot."""
    from sparsedraft.stages.prune.stage import prune as stage

    emit(stage(options))


def drop_layers(options: DropLayersOptions) -> None:
    """Drop the consecutive block of layers with the smallest angular distance."""
    from sparsedraft.stages.prune.drop_layers import drop_layers as stage

    emit(stage(options))


app.command()(command(PruneOptions, prune))
app.command("drop-layers")(command(DropLayersOptions, drop_layers))


@app.command()
def inspect(
    checkpoint: Annotated[str, typer.Argument(help="A Hugging Face id, a checkpoint folder or a .gguf file.")],
) -> None:
    """Show what a checkpoint is made of: shape, sparsity and pattern of every linear, MACs, parameters, bytes."""
    from sparsedraft.stages.inspect.stage import inspect as look
    from sparsedraft.stages.inspect.stage import table

    result = look(checkpoint)
    console.print(table(result))
    emit(result)


app.command()(finetune)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run, or of distilled data.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the report of a run or of distilled data: one self-contained HTML file, and Markdown."""
    from sparsedraft.stages.report.stage import report as stage

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
    told = str(error)  # of an OSError, too, and of those that wrap one
    return os.strerror(errno.ENOMEM) in told or ("DefaultCPUAllocator" in told and "memory" in told)


def main() -> None:
    """Entry point of the `sparsedraft` command. Typer itself exits with 2 for wrong options and 0 for --help."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    sys.exit(guarded(app))
