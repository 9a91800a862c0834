"""Options that several commands share, how their values are read, and how a command ends."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsedraft.base import bounds
from sparsedraft.base.console import leads
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import dumps

Out = Annotated[Path, typer.Option(help="Folder to write; must be new, empty, or this command's own earlier result.")]
Seed = Annotated[int, typer.Option(min=0, max=bounds.SEED, help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="torch device: cpu, cuda, cuda:1, mps, ...")]
Dtype = Annotated[str, typer.Option(help="Arithmetic: float32, bfloat16 or float16.")]
Runtime = Annotated[
    str,
    typer.Option(
        help="What runs the models: native (this CPU's own kernels), transformers, or auto: native where it can."
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace the folder that this command made there from other inputs; it deletes no other."
    ),
]
Calibration = Annotated[str, typer.Option(help="Distilled data folder, or PROMPTS, to calibrate on.")]
CalibrationTokens = Annotated[int, typer.Option("--tokens", min=1, max=bounds.TOKENS, help="Calibration tokens.")]
SequenceLength = Annotated[int, typer.Option(min=2, max=bounds.LENGTH, help="Length of a packed sequence, tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")]
TopK = Annotated[int, typer.Option(min=0, max=bounds.VOCABULARY, help="Sample among the k likeliest tokens; 0 is off.")]
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
    int,
    typer.Option(
        min=1, max=bounds.DRAFTED, help="Branching of draft trees of K nodes, one prompt at a time; 1 is a chain."
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, max=bounds.ROWS, help="Rows decoded at once.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, max=bounds.LENGTH, help="Longest answer, tokens.")]
Limit = Annotated[int | None, typer.Option(min=1, max=bounds.PROMPTS, help="Use only the first so many prompts.")]
TemplateArg = Annotated[
    list[str] | None,
    typer.Option(
        "--template-arg",
        help="name=value for the chat template, such as enable_thinking=false (as often as you like).",
    ),
]
AllowOverlap = Annotated[
    bool, typer.Option("--allow-overlap", help="Go on although evaluation prompts are among them.")
]


def words(text: str) -> tuple[str, ...]:
    """The words of a comma-separated list."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def template_args(texts: Sequence[str] | None) -> dict[str, Any]:
    """Arguments of a chat template from `name=value` texts; a value that is JSON (true, 3, "3") is that, else text.

    UserError for a text of another form, and for a name that is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise UserError(f"--template-arg {text} is not of the form name=value, such as enable_thinking=false.")
        if name in found:
            raise UserError(f"--template-arg {name} is given twice: leave one of them out.")
        try:
            found[name] = json.loads(value, parse_constant=str)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def emit(result: dict[str, Any]) -> None:
    """Print the result as the last line on stdout; of several processes, one does."""
    if leads():
        sys.stdout.write(dumps(result) + "\n")
        sys.stdout.flush()
