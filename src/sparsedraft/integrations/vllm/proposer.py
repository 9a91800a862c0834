"""Drafts of our own engine for a target of vLLM's, on whichever device that runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsedraft.base.errors import UserError
from sparsedraft.integrations.vllm import sampling
from sparsedraft.integrations.vllm.threads import team
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers.vocab import same_tokens
from sparsedraft.native.extension import extension
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Session
from sparsedraft.writers.prefix import shared

SETTING = "sparsedraft_drafter"  # of vLLM's --additional-config: the drafter's folder


class Proposer:
    """vLLM makes one of its configuration, and asks it for drafts after each step: {"method": "custom_class"}.

    Drafts are greedy, for all requests in passes that they share. vLLM takes them for certain ones where it samples,
    which keeps the target's distribution. Raises UserError for a drafter that cannot be used.
    """

    def __init__(self, vllm_config: Any) -> None:
        self.most = vllm_config.speculative_config.num_speculative_tokens
        folder = drafter_of(vllm_config.additional_config)
        target = vllm_config.model_config
        if not same_tokens(checkpoint.load_tokenizer(target.tokenizer), checkpoint.load_tokenizer(folder)):
            raise UserError(
                f"drafter {folder} has another tokenizer than {target.model}: give vLLM's own draft model with "
                '"use_heterogeneous_vocab": true, or a drafter of the same family.'
            )
        if vllm_config.model_config.get_vocab_size() < (width := checkpoint.read_config(folder).vocab_size):
            raise UserError(
                f"drafter {folder} has {width} tokens, more than {target.model}: give a drafter of the same family."
            )
        if torch.device(vllm_config.device_config.device).type == "cpu":
            sampling.mend()
        self.texts = Texts(native_model(folder), vllm_config.scheduler_config.max_num_seqs, own_pool())

    def load_model(self, *target: Any, **options: Any) -> None:
        """vLLM calls this once the target is loaded; the drafter is already."""

    def propose(
        self, sampled_token_ids: list[list[int]], num_tokens: np.ndarray, token_ids: np.ndarray, **more: Any
    ) -> list[list[int]]:
        """The drafts of each request: none where it has sampled nothing, as while its prompt is read.

        `token_ids` [requests, tokens] holds the whole texts, num_tokens[i] of them in row i.
        """
        texts = [
            token_ids[i, : num_tokens[i]].tolist() if sampled else None for i, sampled in enumerate(sampled_token_ids)
        ]
        return self.texts.draft(texts, self.most)


class Texts:
    """Sequences of the drafter's engine that follow the texts of requests, whichever row vLLM gives them."""

    def __init__(self, model: Any, most: int, pool: Any) -> None:
        self.session = Session(model, most, pool=pool)
        self.cached: list[list[int]] = [[] for _ in range(most)]

    def draft(self, texts: Sequence[list[int] | None], most: int) -> list[list[int]]:
        """Up to `most` tokens after each text; none after None, where the drafter's context ends, or after a token that
        the drafter does not have: a target may have more, and an error would end all requests."""
        found: list[list[int]] = [[] for _ in texts]
        wanted = {i: count for i, text in enumerate(texts) if text and (count := self._room(text, most)) > 0}
        if not wanted:
            return found
        rows = self._rows({i: texts[i] or [] for i in wanted})
        common, counts = [len(ids) for ids in self.cached], [0] * len(self.cached)
        unread: list[list[int]] = [[] for _ in self.cached]
        for i, row in rows.items():
            text = texts[i] or []
            common[row] = min(shared(self.cached[row], text), len(text) - 1)
            unread[row], counts[row] = text[common[row] :], wanted[i]
        self.session.rollback(common)
        self.cached = [ids[:count] for ids, count in zip(self.cached, common, strict=True)]
        drafts = self.session.draft(counts, unread)
        for i, row in rows.items():
            found[i] = drafts[row]
            self.cached[row] += [*unread[row], *drafts[row][:-1]]
        return found

    def _room(self, text: list[int], most: int) -> int:
        longest = self.session.max_length
        if max(text) >= self.session.model.handle.vocabulary:
            return 0
        return most if longest is None else min(most, longest - len(text))

    def _rows(self, texts: dict[int, list[int]]) -> dict[int, int]:
        """For each text the sequence that has most of it, the longest text first."""
        free, rows = set(range(len(self.cached))), {}
        for i in sorted(texts, key=lambda i: -len(texts[i])):
            row = max(free, key=lambda row: (shared(self.cached[row], texts[i]), -len(self.cached[row])))
            free.remove(row)
            rows[i] = row
        return rows


def drafter_of(settings: Any) -> Path:
    """The drafter's folder that vLLM's additional configuration names; UserError where it names none."""
    folder = settings.get(SETTING) if isinstance(settings, dict) else None
    if not isinstance(folder, str) or not Path(folder).is_dir():
        raise UserError(
            f"additional_config has {SETTING} {folder!r}, not a folder: give --additional-config "
            f'\'{{"{SETTING}": "FOLDER"}}\' the drafter.'
        )
    return Path(folder)


def own_pool() -> Any:
    """Threads for drafting: those of the process's OpenMP, as nothing else computes on a CPU meanwhile."""
    return extension().Pool(torch.get_num_threads(), team())
