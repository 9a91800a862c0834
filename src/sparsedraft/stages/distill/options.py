"""The options of `distill`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparsedraft.base import bounds
from sparsedraft.base.errors import UserError
from sparsedraft.base.fields import BatchSize, Drawn, Length, Machine, Out, Replacing, ServedName
from sparsedraft.base.options import Argument, Exists, Flag, Options, Words
from sparsedraft.models.names import check_model
from sparsedraft.text.names import check_prompts


class Rules(Options):
    """Which rows to leave out; the defaults leave out exact duplicates only."""

    near_duplicates: float = Field(
        0.0, ge=0, le=1, description="Leave out prompts this similar to an earlier one, 0 to 1; 0 is off (magpie: 0.8)."
    )
    min_answer_tokens: int = Field(0, ge=0, le=bounds.LENGTH, description="Leave out shorter answers, tokens.")
    max_answer_tokens: int = Field(0, ge=0, le=bounds.LENGTH, description="Leave out longer answers, tokens; 0 is off.")
    max_prompt_tokens: int = Field(0, ge=0, le=bounds.LENGTH, description="Leave out longer prompts, tokens; 0 is off.")
    drop_cut_off: bool = Field(False, description="Leave out answers that were cut off.")
    languages: Annotated[tuple[str, ...], Words] = Field(
        (), description="Keep only these, such as en,de; default: any."
    )
    drop_words: Annotated[tuple[str, ...], Words] = Field(
        (), description="Leave out rows with one of these words, comma-separated."
    )
    keep_words: Annotated[tuple[str, ...], Words] = Field(
        (), description="Keep only rows with one of these words, comma-separated."
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.languages:
            known = _known_languages()
            if strange := next((code for code in self.languages if code not in known), None):
                raise UserError(f"--languages {strange} is not known: give ISO 639-1 codes such as en or de.")
        return self


def _known_languages() -> list[str]:
    import py3langid  # half a second, for those who ask for a language

    return [code for code, _ in py3langid.rank("")]


class _Sources(Options):
    target: Annotated[str, Argument(), Exists(check_model)] = Field(description="The model that writes the answers.")
    prompts: Annotated[str | None, Argument(), Exists(check_prompts)] = Field(
        None, description="PROMPTS to answer; none for --mode magpie."
    )
    out: Out


class _Writer(Options):
    mode: Literal["respond", "rewrite", "magpie"] = Field(
        "respond",
        description="respond: the target answers each turn; rewrite: it writes reference answers in its own words; "
        "magpie: it writes the prompts, too.",
    )
    engine: Literal["transformers", "native", "endpoint"] = Field(
        "transformers",
        description="transformers or native (in this process), or endpoint (an OpenAI-compatible server).",
    )
    url: str | None = Field(None, description="The server's address, such as http://localhost:8000/v1.")
    served_name: ServedName = None
    concurrency: int = Field(
        16, ge=1, le=bounds.CALLS, description="Calls to the server under way at once, of each worker."
    )
    timeout: float = Field(
        300.0,
        ge=0.001,
        description="Longest silence in a call, seconds; a whole call may take 4 times as long.",
    )
    retries: int = Field(6, ge=0, le=bounds.RETRIES, description="More tries of a call that failed.")
    retry_wait: float = Field(
        0.5,
        ge=0,
        description="Wait before the first more try, seconds; it doubles each time, up to 16-fold.",
    )
    workers: int = Field(
        1,
        ge=1,
        le=bounds.WORKERS,
        description="Ray actors, each with its own model or server connection; 1: no Ray.",
    )


class _Rows(Options):
    prompt_temperature: float = Field(1.0, ge=0, description="Temperature of prompts that magpie writes.")
    openings: Annotated[tuple[str, ...], Flag("--opening")] = Field(
        (), description="How prompts that magpie writes begin (as often as you like: they take turns)."
    )
    samples: int = Field(
        1, ge=1, le=bounds.SAMPLES, description="Answers per prompt (more than one needs a temperature)."
    )
    top_k_logprobs: int = Field(
        0,
        ge=0,
        le=bounds.LIKELIEST,
        description="Also store the target's so many likeliest tokens, with log-probabilities.",
    )
    batch_size: BatchSize = 32
    limit: int | None = Field(
        None,
        ge=1,
        le=bounds.PROMPTS,
        description="Use only the first so many prompts; for magpie: write so many.",
    )
    skip_bad: bool = Field(
        False,
        description="Leave out, and count, prompts that cannot be read, do not fit, or that a server refuses.",
    )
    rules: Rules = Rules()


class DistillSettings(_Rows, Drawn, Length, _Writer):
    """How the target writes the data: the recipe's section. Lengths in tokens."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.engine == "endpoint") != (self.url is not None):
            raise ValueError("<engine> endpoint and <url> belong together: give both, or neither")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"<samples> {self.samples} would be {self.samples} equal answers under greedy decoding: set "
                "<temperature>"
            )
        if self.engine == "endpoint" and self.mode == "rewrite" and self.top_k_logprobs:
            raise ValueError(
                f"<top_k_logprobs> {self.top_k_logprobs} cannot be had for rewritten answers from a server: leave it "
                "out, or use <engine> transformers"
            )
        if self.mode != "magpie" and self.openings:
            raise ValueError(
                f"<openings> {self.openings[0]!r} begins prompts that the target writes: leave it out, or set <mode> "
                "to magpie"
            )
        if self.mode == "magpie":
            self._check_magpie()
        return self

    def _check_magpie(self) -> None:
        if self.limit is None:
            raise ValueError("<limit> must say how many conversations <mode> magpie is to write: set it")
        if self.limit > bounds.CONVERSATIONS:
            raise ValueError(
                f"<limit> {self.limit} is more than <mode> magpie writes into one folder: give at most "
                f"{bounds.CONVERSATIONS}, and make several with other seeds"
            )
        if self.prompt_temperature == 0:
            raise ValueError("<prompt_temperature> 0 makes every prompt the same: give 1, for example")


def check_source(mode: str, prompts: str | None) -> None:
    """Raise ValueError where the mode has prompts that it writes itself, or none to answer."""
    if mode == "magpie" and prompts is not None:
        raise ValueError(
            f"<prompts> {prompts} and <mode> magpie do not go together: magpie writes the prompts itself, so give none "
            "(prompts: null in a recipe)"
        )
    if mode != "magpie" and prompts is None:
        raise ValueError(f"<mode> {mode} needs <prompts> to answer: give some")


class _Evaluation(Options):
    evaluation: Annotated[tuple[str, ...], Exists(check_prompts)] = Field(
        (),
        description="PROMPTS kept for evaluation (as often as you like): an error if one is among these.",
    )
    allow_overlap: bool = Field(False, description="Go on although evaluation prompts are among them.")


class DistillOptions(Replacing, Machine, _Evaluation, DistillSettings, _Sources):
    """What `distill` writes: which target, on which prompts, and how."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        check_source(self.mode, self.prompts)
        if self.engine == "native" and (self.device, self.dtype) != ("cpu", "float32"):
            raise ValueError(
                f"<engine> native computes in float32 on the CPU, not in {self.dtype} on {self.device}: leave these out"
            )
        return self

    @property
    def kept_for_evaluation(self) -> tuple[str, ...]:
        """The PROMPTS that must not be among these."""
        return () if self.allow_overlap else self.evaluation
