"""One distillation as a value: what a worker, in whatever process, needs to know to write its share of the rows."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import PreTrainedTokenizerBase

from sparsedraft import checkpoint, templates
from sparsedraft.console import console
from sparsedraft.conversation import DAY, Writer, respond
from sparsedraft.decoder import context_of
from sparsedraft.distill.endpoint import EndpointEngine
from sparsedraft.distill.magpie import magpie
from sparsedraft.distill.rewrite import rewrite
from sparsedraft.distill.secret import shown
from sparsedraft.distill.server import Server
from sparsedraft.ends import ends
from sparsedraft.engine import Engine, TransformersEngine
from sparsedraft.errors import UserError
from sparsedraft.generation import Output
from sparsedraft.prompts import Prompt
from sparsedraft.runtime.model import native_model
from sparsedraft.runtime.writer import NativeWriter
from sparsedraft.speculate.sampling import Sampling
from sparsedraft.templates import Arguments
from sparsedraft.units import Make

MODES = ("respond", "rewrite", "magpie")
ENGINES = ("transformers", "native", "endpoint")
LONGEST = 86400.0  # seconds that may be waited for a server
UNSTORED = ("min_gap", "max_new_tokens")  # of an Answer: matter to evaluation only


@dataclass(frozen=True)
class Endpoint:
    """A server: its address (".../v1"), the target's name there, calls under way at once, and patience (see Server)."""

    url: str = field(repr=False)  # it may hold a password
    served: str
    concurrency: int = 16
    timeout: float = 300.0
    retries: int = 6
    retry_wait: float = 0.5

    def __post_init__(self) -> None:
        if not _is_http(self.url):
            raise UserError(f"--url {shown(self.url)} is no http address: give one such as http://localhost:8000/v1.")
        for option, seconds in (("timeout", self.timeout), ("retry-wait", self.retry_wait)):
            if not seconds <= LONGEST:
                raise UserError(f"--{option} {seconds:g} is not possible: give at most {LONGEST:g} seconds, a day.")

    def engine(self, tokenizer: PreTrainedTokenizerBase, skip: bool | None = None) -> EndpointEngine:
        """The server as an engine; it is asked whether it is there. `skip`: see EndpointEngine."""
        server = Server(self.url, timeout=self.timeout, retries=self.retries, wait=self.retry_wait)
        self.tell_day(tokenizer)
        return EndpointEngine(server, self.served, tokenizer, skip)

    def tell_day(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Say on the console which day the server's template tells the model, where it is not the pinned one."""
        if day := templates.day_there(tokenizer):
            console.print(
                f"the target's chat template tells the model the day, which cannot be set at a server: answers are of "
                f"{day}, while prompts are stored, and run here, with {templates.DATE_STRING}",
                soft_wrap=True,
            )


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half a bracket, or no port
        return False


@dataclass(frozen=True)
class Job:
    """How the target in `folder` writes: engine, mode, lengths in tokens."""

    folder: Path
    mode: str
    endpoint: Endpoint | None  # None: in this process
    sampling: Sampling
    prompt_sampling: Sampling  # of the prompts that magpie writes
    max_new_tokens: int
    samples: int
    top_k_logprobs: int
    batch_size: int
    seed: int
    device: str
    dtype: str
    native: bool = False  # the native engine, where there is no endpoint
    max_prompt_tokens: int = 0  # of the prompts that magpie writes; 0: no limit
    template_args: Arguments = field(default_factory=dict)  # of the chat template
    skip_bad: bool = False  # leave out what a server refuses

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The target's, with the arguments of its template."""
        return templates.give(checkpoint.load_tokenizer(self.folder), self.template_args)

    @property
    def concurrency(self) -> int:
        """Units under way at once in one process."""
        return self.endpoint.concurrency if self.endpoint else 1

    @property
    def context(self) -> int | None:
        """The longest prompt and answer together, in tokens, as the target's config says."""
        return context_of(checkpoint.read_config(self.folder))

    def engine(self) -> Engine:
        """The engine: its model loaded, or its server asked whether it is there."""
        tokenizer = self.tokenizer
        if self.native:
            return NativeWriter(native_model(self.folder), tokenizer, ends(self.folder, tokenizer), self.batch_size)
        if self.endpoint is None:
            dtype, device = checkpoint.dtype_named(self.dtype), checkpoint.device_named(self.device)
            model = checkpoint.load(self.folder, dtype=dtype, device=device)
            return TransformersEngine(model, tokenizer, ends(self.folder, tokenizer), self.batch_size)
        return self.endpoint.engine(tokenizer, self.skip_bad)

    def maker(self, engine: Engine, heard: Callable[[Output], None] = lambda output: None) -> Make:
        """What turns a unit of conversations into rows; `heard` is told of every answer."""
        writer = Writer(
            engine, self.tokenizer, self.sampling, self.max_new_tokens, self.seed,
            self.samples, self.top_k_logprobs, heard, self.context,
        )  # fmt: skip
        same: dict[str, Any] = {"source": "target", "note": "", "mode": self.mode, "engine": engine.name}
        same["temperature"] = self.sampling.temperature

        def make(unit: Sequence[Prompt]) -> list[dict[str, Any]]:
            day = templates.day_there(writer.tokenizer) if self.endpoint else None
            made = same | ({DAY: day} if day else {})
            if self.mode == "rewrite":
                rows = rewrite(writer, unit)
            elif self.mode == "magpie":
                rows = magpie(writer, unit, self.prompt_sampling, self.max_prompt_tokens)
            else:
                rows = [asdict(answer) for answer in respond(writer, unit)]
            return [made | {k: v for k, v in row.items() if k not in UNSTORED} for row in rows]

        return make
