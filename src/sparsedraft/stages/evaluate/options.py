"""The options of `eval`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from sparsedraft.base import bounds
from sparsedraft.base.errors import UserError
from sparsedraft.base.fields import Across, BatchSize, MaxNewTokens, Replacing, Running, Sampled, ServedName
from sparsedraft.base.options import Argument, Exists, Options, Text, Words
from sparsedraft.maths.warpers import Sampling
from sparsedraft.models.names import LOOKUP, check_drafter, check_model, split_lookup
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.text.names import check_prompts
from sparsedraft.writers.server.secret import shown

POLICIES = ("auto", "confidence", "bandit")  # that choose K themselves
Named = tuple[str, str]  # a drafter's name, and its model or "lookup"


def _number_or_policy(value: object) -> object:
    if (type(value) is int and 1 <= value <= bounds.DRAFTED) or value in POLICIES:
        return value
    raise PydanticCustomError("k", f"K is a whole number from 1 to {bounds.DRAFTED}, or auto, confidence or bandit")


K = Annotated[int | str, BeforeValidator(_number_or_policy)]


def parse_k(text: str) -> tuple[int | str, ...]:
    """ "1,3,5,auto" as numbers and names; UserError for what is neither a number of at least 1 nor a policy."""
    ks: list[int | str] = []
    for part in (part.strip() for part in text.split(",")):
        if part in POLICIES:
            ks.append(part)
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
        ks.append(number)
    return tuple(ks)


def named_drafter(text: str) -> Named:
    """(name, model) of NAME=MODEL, or of a model alone; a path that exists may hold "=" itself."""
    name, sign, ref = text.partition("=")
    if not sign or Path(text).exists():
        return Path(text).name or text, text
    if not name or not ref:
        raise UserError(f"drafter '{text}' is not of the form NAME=MODEL.")
    return name, ref


def _check_entry(ref: str) -> None:
    """UserError where there is nothing of that name."""
    model, beside = split_lookup(ref)
    (check_model if beside else check_drafter)(model)


class _Models(Options):
    target: Annotated[str, Argument(), Exists(check_model)] = Field(description="The target.")
    drafters: Annotated[
        tuple[Named, ...],
        Argument(),
        Text(list[str], lambda texts: tuple(map(named_drafter, texts))),
        Exists(lambda named: _check_entry(named[1])),
    ] = Field(description="The drafters, each a model, NAME=MODEL, lookup, or MODEL+lookup (both, the better a step).")
    prompts: Annotated[str | None, Exists(check_prompts)] = Field(None, description="PROMPTS to evaluate on.")
    tasks: Annotated[tuple[str, ...] | None, Words] = Field(
        None,
        description="Instead: tasks of lm-eval (names or local YAML files, comma-separated) for target and drafters.",
    )


class _Drafted(Options):
    k: Annotated[tuple[K, ...], Text(str, parse_k, lambda k: ",".join(map(str, k)))] = Field(
        (1, 2, 3, 5, 8),
        description="Numbers of drafted tokens a step, and policies (auto, confidence, bandit), comma-separated.",
    )


class _Rows(Options):
    simulate: bool = Field(False, description="The loop's numbers without its target passes (sampled: expected ones).")
    max_new_tokens: MaxNewTokens = 128
    batch_size: BatchSize = 32
    limit: int | None = Field(None, ge=1, le=bounds.PROMPTS, description="Use only the first so many prompts.")
    spread: bool = Field(False, description="Take --limit prompts at equal distances through the file, not the first.")


class _Kept(Options):
    answers: Path | None = Field(
        None,
        description="An evaluation of this target on these PROMPTS, whose answers are taken; none is written.",
    )
    out: Path | None = Field(None, description="Folder for the result and its raw rows; default: kept nowhere.")


class _Server(Options):
    url: str | None = Field(
        None, description="An OpenAI-compatible server that runs the target, .../v1; with --simulate, greedily."
    )
    served_name: ServedName = None
    concurrency: int = Field(16, ge=1, le=bounds.CALLS, description="Calls to the server under way at once.")


class EvaluateSettings(_Server, _Rows, Across, Sampled, _Drafted):
    """How to evaluate: the recipe's section. Lengths in tokens."""

    @property
    def sampling(self) -> Sampling:
        warpers = (self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
        return Sampling(*warpers, self.verification)

    @property
    def blockwise(self) -> bool:
        """Whether drafts may be verified as blocks."""
        return not self.sampling.greedy and self.verification == "block" and self.tree == 1

    @property
    def windowed(self) -> dict[str, int]:
        """What drafters are asked to read of a long text, for results; nothing where they are asked for nothing."""
        window = Window.of_options(self.drafter_window, self.drafter_sinks)
        return {"drafter_window": window.size, "drafter_sinks": window.sinks} if window else {}

    @property
    def numbers(self) -> list[int]:
        """The K's that are numbers."""
        return sorted({k for k in self.k if isinstance(k, int)})

    @property
    def policies(self) -> list[str]:
        """The K's that are policies."""
        return sorted({k for k in self.k if isinstance(k, str)})

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.simulate and (self.policies or self.tree > 1):
            what = f"<k> {self.policies[0]}" if self.policies else f"<tree> {self.tree}"
            raise ValueError(f"{what} needs the real loop: turn <simulate> off")
        if self.url is not None and not (self.simulate and self.sampling.greedy and self.repetition_penalty == 1):
            raise ValueError(
                f"<url> {shown(self.url)}: what a server says tells of greedy drafting alone: set <simulate>, and "
                "leave out what samples"
            )
        return self


class EvaluateOptions(Replacing, Running, _Kept, EvaluateSettings, _Models):
    """What `eval` measures: which drafters, against which target, on which prompts, and how."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if (self.prompts is None) == (self.tasks is None):
            raise ValueError("give <prompts> to measure drafting, or <tasks> for lm-eval: one of the two")
        drafting = (*EvaluateSettings.model_fields, "answers", "runtime", "cache", "template_args")
        if self.tasks is not None:
            given = (name for name in drafting if name in self.model_fields_set - {"limit", "batch_size"})
            if (name := next(given, None)) is not None:
                raise ValueError(
                    f"<{name}> is about drafting, and <tasks> scores each model alone: leave one of them out"
                )
            if self.seed >= 2**32:  # as numpy takes it
                raise ValueError(f"<seed> {self.seed} is more than lm-eval takes: give at most {2**32 - 1}")
            return self
        if (self.tree > 1 or self.drafting == "parallel") and all(ref == LOOKUP for _, ref in self.drafters):
            what = f"<tree> {self.tree}" if self.tree > 1 else "<drafting> parallel"
            raise ValueError(f"{what} needs a model that drafts: name one, or leave it out")
        if both := next((ref for _, ref in self.drafters if split_lookup(ref)[1]), None):
            if self.simulate:
                raise ValueError(f"{both} chooses by measured seconds, which need the real loop: turn <simulate> off")
            if self.tree > 1:
                raise ValueError(f"{both} drafts chains, and <tree> {self.tree} none: leave one of them out")
        names = [name for name, _ in self.drafters]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two drafters are called '{twice}': name them, as in first={self.drafters[0][1]}")
        if "" in names:
            raise ValueError("a drafter has an empty name: name it, as in first=MODEL")
        return self
