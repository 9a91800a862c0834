"""Drafts of our own engine for a target of vLLM's, on whichever device that runs."""

import logging
from typing import Any

import numpy as np
import torch

from sparsedraft.integrations.vllm import sampling
from sparsedraft.integrations.vllm.drafting import Drafting
from sparsedraft.integrations.vllm.models import pair_of
from sparsedraft.integrations.vllm.settings import settings_of
from sparsedraft.speculate.policy.policies import Auto, Constant

log = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own logger, which shows it


class Proposer:
    """vLLM makes one of its configuration, and asks it for drafts after each step: {"method": "custom_class"}.

    Drafts are greedy, for all requests in passes that they share. vLLM takes them for certain ones where it samples,
    which keeps the target's distribution. Of several processes with parts of the target the first one drafts. Raises
    UserError for settings that are not possible, and for a drafter that cannot be used.
    """

    ROWS = 64  # requests at once, as many as `serve` writes; with more, drafts pay nowhere

    def __init__(self, vllm_config: Any) -> None:
        settings = settings_of(vllm_config.additional_config)
        if torch.device(vllm_config.device_config.device).type == "cpu":
            sampling.mend()
        self.drafting: Drafting | None = None
        parallel = vllm_config.parallel_config
        if parallel.rank % parallel.tensor_parallel_size:
            return
        most, rows = vllm_config.speculative_config.num_speculative_tokens, vllm_config.scheduler_config.max_num_seqs
        rows = min(rows, self.ROWS)
        self.drafting = Drafting(
            pair_of(vllm_config, settings),
            Auto(most, reads_freely=rows > 1) if settings.policy == "auto" else Constant(most),
            most=most,
            rows=rows,
            longest=vllm_config.model_config.max_model_len,
        )

    def load_model(self, *target: Any, **options: Any) -> None:
        """vLLM calls this once the target is loaded; the drafter is already."""

    def propose(
        self, sampled_token_ids: list[list[int]], num_tokens: np.ndarray, token_ids: np.ndarray, **more: Any
    ) -> list[list[int]]:
        """The drafts of each request: none where it has sampled nothing, as while its prompt is read.

        `token_ids` [requests, tokens] holds the whole texts, num_tokens[i] of them in row i.
        """
        found: list[list[int]] = [[] for _ in sampled_token_ids]
        if self.drafting is None:
            return found
        rows = {i: token_ids[i, : num_tokens[i]] for i, sampled in enumerate(sampled_token_ids) if sampled}
        try:
            drafts = self.drafting.drafts(rows, alone=len(rows) == len(found))
        except (FloatingPointError, MemoryError) as error:  # vLLM would end all requests
            log.warning("sparsedraft drafts nothing in this step: %s", error or "memory has run out")
            return found
        for row, tokens in drafts.items():
            found[row] = tokens
        return found
