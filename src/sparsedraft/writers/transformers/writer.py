"""A transformers model of this process as a Writer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.decoder import context_length
from sparsedraft.text import bins, logits
from sparsedraft.text.sample import Sample
from sparsedraft.writers.protocol.requests import Completion, Request, check_top_k
from sparsedraft.writers.transformers.abilities import backend_of, reads_whole
from sparsedraft.writers.transformers.completions import complete_all


@dataclass
class TransformersWriter:
    """A model in this process; `eos_ids` end a text (see `ends`), `batch_size` rows are decoded at once."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    batch_size: int = 32
    name: str = "transformers"

    def __post_init__(self) -> None:
        self.context = context_length(self.model)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, top_k_logprobs: int = 0
    ) -> Iterator[Completion]:
        """See `complete_all`."""
        return complete_all(
            self.model,
            requests,
            batch_size=self.batch_size,
            sampling=sampling,
            eos_ids=self.eos_ids,
            top_k_logprobs=top_k_logprobs,
        )

    def score(self, samples: Sequence[Sample], k: int) -> list[tuple[list[int], list[float]]]:
        """Each sample as it would be written."""
        check_top_k(self.model, k)
        found, whole = [], reads_whole(self.model)
        for sample in samples:
            if whole:
                logprobs = logits.logprobs(self.model, bins.fill([sample]).to(self.model.device))
            else:
                ids, n = [*sample.prompt_ids, *sample.answer_ids], len(sample.answer_ids)
                logprobs = backend_of(self.model).forward([ids[:-1]], [n])[0].float().log_softmax(-1)
            best = logprobs.topk(k, dim=-1)
            found.append((best.indices.flatten().tolist(), best.values.flatten().tolist()))
        return found
