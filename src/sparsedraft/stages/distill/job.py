"""A distillation job: all that a worker, in any process, needs to write its share of the rows."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import context_of
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.models.tokenizers.templates import Arguments
from sparsedraft.native.loading import load
from sparsedraft.native.model import native_model
from sparsedraft.stages.distill.magpie import magpie
from sparsedraft.stages.distill.rewrite import rewrite
from sparsedraft.text.prompts import Prompt
from sparsedraft.writers.conversation import DAY, Responder, respond
from sparsedraft.writers.native import NativeWriter
from sparsedraft.writers.protocol.requests import Completion
from sparsedraft.writers.protocol.writer import Writer
from sparsedraft.writers.server.address import Endpoint
from sparsedraft.writers.transformers.writer import TransformersWriter
from sparsedraft.writers.units import Make

UNSTORED = ("min_gap", "max_new_tokens")  # fields of an Answer that only an evaluation needs


@dataclass(frozen=True)
class Job:
    """How the target in `folder` writes. Lengths are in tokens."""

    folder: Path
    mode: str  # respond, rewrite or magpie
    engine: str  # transformers, native or endpoint
    endpoint: Endpoint | None  # None: the engine runs in this process
    sampling: Sampling
    prompt_sampling: Sampling  # of the prompts that magpie writes
    max_new_tokens: int
    samples: int
    top_k_logprobs: int
    batch_size: int
    seed: int
    device: str
    dtype: str
    max_prompt_tokens: int = 0  # of the prompts that magpie writes; 0: no limit
    template_args: Arguments = field(default_factory=dict)  # of the chat template
    skip_bad: bool = False  # leave out what a server refuses

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The target's tokenizer, with the arguments of its template."""
        return templates.give(checkpoint.load_tokenizer(self.folder), self.template_args)

    @property
    def concurrency(self) -> int:
        """Units under way at once in one process."""
        return self.endpoint.concurrency if self.endpoint else 1

    @property
    def context(self) -> int | None:
        """Tokens that prompt and answer may have together, by the target's config; None: no limit."""
        return context_of(checkpoint.read_config(self.folder))

    def writer(self) -> Writer:
        """The writer, with its model loaded, or after its server has answered."""
        tokenizer = self.tokenizer
        if self.engine == "native":
            return NativeWriter(native_model(self.folder), tokenizer, end_ids(self.folder, tokenizer), self.batch_size)
        if self.endpoint is None:
            dtype, device = checkpoint.dtype_named(self.dtype), checkpoint.device_named(self.device)
            model = load(self.folder, dtype=dtype, device=device)
            return TransformersWriter(model, tokenizer, end_ids(self.folder, tokenizer), self.batch_size)
        return self.endpoint.writer(tokenizer, self.skip_bad)

    def maker(self, writer: Writer, on_completion: Callable[[Completion], None] = lambda output: None) -> Make:
        """The function that turns a unit of conversations into rows; it calls `on_completion` with every answer."""
        responder = Responder(
            writer, self.tokenizer, self.sampling, self.max_new_tokens, self.seed,
            self.samples, self.top_k_logprobs, on_completion, self.context,
        )  # fmt: skip
        constant: dict[str, Any] = {"source": "target", "note": "", "mode": self.mode, "engine": writer.name}
        constant["temperature"] = self.sampling.temperature

        def make(unit: Sequence[Prompt]) -> list[dict[str, Any]]:
            day = templates.day_there(responder.tokenizer) if self.endpoint else None
            shared = constant | ({DAY: day} if day else {})
            if self.mode == "rewrite":
                rows = rewrite(responder, unit)
            elif self.mode == "magpie":
                rows = magpie(responder, unit, self.prompt_sampling, self.max_prompt_tokens)
            else:
                rows = [asdict(answer) for answer in respond(responder, unit)]
            return [shared | {k: v for k, v in row.items() if k not in UNSTORED} for row in rows]

        return make
