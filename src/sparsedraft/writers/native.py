"""A model of the native engine as a Writer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.native.model import NativeModel
from sparsedraft.native.session import Session, shared_pool
from sparsedraft.native.threads import single_thread
from sparsedraft.text.sample import Sample
from sparsedraft.writers.protocol.requests import ActiveRequest, Completion, Request, check_fits, extend

PREFILL_TOKENS = 1024  # of prompts in one pass, at most (one prompt may be longer)


@dataclass
class NativeWriter:
    """A model of the native engine. `batch_size` rows are decoded at once, and a row that ends makes room for the next
    prompt. A text does not depend on its neighbours."""

    model: NativeModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    batch_size: int = 32
    name: str = "native"

    def __post_init__(self) -> None:
        self.context: int | None = self.model.handle.max_length or None

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, top_k_logprobs: int = 0
    ) -> Iterator[Completion]:
        """See `Writer`."""
        check_fits(self.context, self.model.handle.vocabulary, requests)
        self._check_top_k(top_k_logprobs)
        queue = sorted(requests, key=lambda r: -len(r.prompt_ids))
        pool = shared_pool(torch.get_num_threads())
        rows = Session(self.model, max(1, min(self.batch_size, len(queue))), pool=pool)
        written: list[ActiveRequest | None] = [None] * len(rows.lengths)
        while queue or any(written):
            read, new = [0] * len(written), 0
            for b, one in enumerate(written):
                if one is None and queue and (not new or new + len(queue[0].prompt_ids) <= PREFILL_TOKENS):
                    written[b] = ActiveRequest.begin(queue.pop(0))
                    new += len(written[b].request.prompt_ids)  # type: ignore[union-attr]
                elif one is not None:
                    read[b] = rows.lengths[b]
            rows.rollback(read)  # what has ended is forgotten
            unread = [one.ids[n:] if one else [] for one, n in zip(written, read, strict=True)]
            with single_thread():
                logits = rows.forward(unread, [int(bool(ids)) for ids in unread])
                going = [one for one in written if one]
                extend(going, torch.cat(logits), sampling, self.eos_ids, top_k_logprobs)
            for b, one in enumerate(written):
                if one and one.finished:
                    written[b] = None
                    yield one.output

    def score(self, samples: Sequence[Sample], k: int) -> list[tuple[list[int], list[float]]]:
        """One pass over each sample."""
        self._check_top_k(k)
        pool, scores = shared_pool(torch.get_num_threads()), []
        for sample in samples:
            n = len(sample.answer_ids)
            logits = Session(self.model, pool=pool).forward([[*sample.prompt_ids, *sample.answer_ids][:-1]], [n])[0]
            best = logits.log_softmax(-1).topk(k, dim=-1)
            scores.append((best.indices.flatten().tolist(), best.values.flatten().tolist()))
        return scores

    def _check_top_k(self, k: int) -> None:
        if k > (rows := self.model.handle.head_rows):
            raise UserError(f"--top-k-logprobs {k} is more than the {rows} tokens of the head: lower it.")
