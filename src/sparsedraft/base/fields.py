"""Options that several stages have, each with its bounds and its help text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from sparsedraft.base import bounds
from sparsedraft.base.errors import UserError
from sparsedraft.base.options import Flag, Options, StageOptions, Text

Out = Annotated[Path, Field(description="Folder to write; must be new, empty, or this command's own earlier result.")]
Seed = Annotated[int, Field(ge=0, le=bounds.SEED, description="Seed of everything random.")]
Device = Annotated[str, Field(description="torch device: cpu, cuda, cuda:1, mps, ...")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"], Field(description="Arithmetic: float32, bfloat16 or float16.")
]
Runtime = Annotated[
    Literal["auto", "native", "transformers"],
    Field(description="What runs the models: native (this CPU's own kernels), transformers, or auto: native where it "
    "can."),
]  # fmt: skip
Cache = Annotated[
    Literal["int16", "int8"],
    Field(description="Keys and values that the native engine keeps: int16, or int8 in half the memory."),
]
Overwrite = Annotated[
    bool, Field(description="Replace the folder that this command made there from other inputs; it deletes no other.")
]
SequenceLength = Annotated[int, Field(ge=2, le=bounds.LENGTH, description="Length of a packed sequence, tokens.")]
BatchSize = Annotated[int, Field(ge=1, le=bounds.ROWS, description="Rows decoded at once.")]
MaxNewTokens = Annotated[int, Field(ge=1, le=bounds.LENGTH, description="Longest answer, tokens.")]
ValidationPrompts = Annotated[int, Field(ge=1, le=bounds.PROMPTS, description="Prompts held out for validation.")]
ServedName = Annotated[str | None, Field(description="The target's name there; default: TARGET.")]


def _positive_or_learned(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= bounds.TEMPERATURE
    if number or value == LEARNED:
        return value
    raise PydanticCustomError("factor", f"give {LEARNED}, or a number above 0 and up to {bounds.TEMPERATURE:g}")


def _factor(text: str) -> float | str:
    """The number that `text` writes, else `text`."""
    try:
        return float(text)
    except ValueError:
        return text


SINKS = 4  # of a window of which nothing else is said
LEARNED = "learned"  # in the place of a drafter's temperature: what its folder says
DrafterTemperature = Annotated[
    float | str,
    BeforeValidator(_positive_or_learned),
    Text(str, _factor, str),
    Field(
        description="Temperature of the drafter's distribution, times --temperature; learned: what its folder says, "
        "else 1. Lossless."
    ),
]


def template_args(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of a chat template from `name=value` texts; a value that is JSON (true, 3, "3") is that, else text.

    UserError for a text of another form, and for a name that is given twice.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise UserError(f"--template-arg {text} is not of the form name=value, such as enable_thinking=false.")
        if name in arguments:
            raise UserError(f"--template-arg {name} is given twice: leave one of them out.")
        try:
            arguments[name] = json.loads(value, parse_constant=str)
        except (ValueError, RecursionError):
            arguments[name] = value
    return arguments


TemplateArgs = Annotated[
    dict[str, JsonValue],
    Flag("--template-arg"),
    Text(list[str], template_args),
    Field(description="name=value for the chat template, such as enable_thinking=false (as often as you like)."),
]


class Calibration(Options):
    """How much text a stage that walks through the layers is calibrated on."""

    tokens: int = Field(65536, ge=1, le=bounds.TOKENS, description="Calibration tokens.")
    sequence_length: SequenceLength = 512


class Length(Options):
    """How much a model writes."""

    max_new_tokens: MaxNewTokens = 256


class Drawn(Options):
    """How the next token is drawn."""

    temperature: float = Field(0.0, ge=0, description="Sampling temperature; 0 is greedy.")
    top_k: int = Field(0, ge=0, le=bounds.VOCABULARY, description="Sample among the k likeliest tokens; 0 is off.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample among the likeliest tokens of this total probability; 1 is off."
    )


class Sampled(Drawn):
    """How the next token is drawn where a model drafts."""

    min_p: float = Field(
        0.0, ge=0, le=1, description="Leave out tokens less likely than this share of the likeliest; 0 is off."
    )
    repetition_penalty: float = Field(1.0, gt=0, description="Divides the logits of tokens seen before; 1 is off.")


class Windowed(Options):
    """What a drafter reads of a long text."""

    drafter_window: int = Field(
        0,
        ge=0,
        le=bounds.LENGTH,
        description="Tokens that the drafter reads of a long text's end; 0 is all of it.",
    )
    drafter_sinks: int = Field(
        SINKS, ge=0, le=bounds.LENGTH, description="Tokens that it then reads of the text's beginning."
    )

    @model_validator(mode="after")
    def _window_possible(self) -> Self:
        check_window(self.drafter_window, self.drafter_sinks)
        return self


class OwnWindow(Options):
    """The same where the drafter's folder may say it (drafting.json)."""

    drafter_window: int | None = Field(
        None,
        ge=0,
        le=bounds.LENGTH,
        description="Tokens that the drafter reads of a long text's end; 0 is all of it. Default: what its folder "
        "says, else all.",
    )
    drafter_sinks: int | None = Field(
        None,
        ge=0,
        le=bounds.LENGTH,
        description="Tokens that it then reads of the text's beginning. Default: what its folder says, else 4.",
    )

    @model_validator(mode="after")
    def _window_possible(self) -> Self:
        check_window(self.drafter_window or 0, SINKS if self.drafter_sinks is None else self.drafter_sinks)
        return self


def check_window(size: int, sinks: int) -> None:
    """ValueError for a window that is not larger than its sinks, or of a single token."""
    if size and size <= max(1, sinks):
        raise ValueError(
            f"<drafter_window> {size} is no more than the {sinks} tokens of <drafter_sinks>, or than 1: give a larger "
            "one, or 0 for the whole text"
        )


Uag = Annotated[
    Literal["auto", "realign", "intersection", "off"],
    Field(description="Across tokenizers: realign (as text), intersection (common tokens), auto, or off (an error)."),
]


class Across(OwnWindow):
    """How target and drafter go together."""

    drafter_temperature: DrafterTemperature = LEARNED
    verification: Literal["block", "token"] = Field(
        "block",
        description="How sampled chains are accepted: as a block (more of them), or token by token. Both are lossless.",
    )

    drafting: Literal["auto", "parallel", "chain"] = Field(
        "auto",
        description="Whether a drafter writes all of a draft in one pass: parallel (it must be trained so), chain (a "
        "pass a token), or auto: parallel where it can.",
    )
    uag: Uag = "auto"
    tree: int = Field(
        1,
        ge=1,
        le=bounds.DRAFTED,
        description="Branching of draft trees of K nodes, one prompt at a time; 1 is a chain.",
    )

    @model_validator(mode="after")
    def _drafts_chains(self) -> Self:
        if self.drafting == "parallel" and self.tree > 1:
            raise ValueError(f"<drafting> parallel drafts chains, and <tree> {self.tree} none: leave one of them out")
        return self

    @property
    def way(self) -> str:
        """How drafts are written, where trees are not drafted in parallel."""
        return "chain" if self.tree > 1 else self.drafting

    @property
    def factor(self) -> float | None:
        """What `drafter_temperature` says; None: what each drafter has learned."""
        return None if isinstance(self.drafter_temperature, str) else self.drafter_temperature


class Machine(StageOptions):
    """How a stage runs: chat template, seed, device and arithmetic."""

    template_args: TemplateArgs = Field(default_factory=dict)
    seed: Seed = 0
    device: Device = "cpu"
    dtype: Dtype = "float32"


class Running(Machine):
    """How a stage runs that drafts."""

    runtime: Runtime = "auto"
    cache: Cache = "int16"


class Replacing(StageOptions):
    """A stage that writes a folder."""

    overwrite: Overwrite = False
