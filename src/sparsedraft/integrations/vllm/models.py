"""The two models of our proposer: vLLM's target, which is not run here, and the drafter, on vLLM's threads."""

from dataclasses import replace
from typing import Any, NoReturn

import torch

from sparsedraft.base.errors import UserError
from sparsedraft.integrations.vllm.settings import Settings, as_in_json
from sparsedraft.integrations.vllm.threads import team
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.names import LOOKUP
from sparsedraft.native.extension import extension
from sparsedraft.native.session import Session
from sparsedraft.speculate.pair import Pair
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.protocol.backend import Backend


class Target(LoadedModel):
    """The target that vLLM runs, as its configuration describes it."""

    def __init__(self, tokenizer: str, vocabulary: int) -> None:
        super().__init__(_absent, checkpoint.load_tokenizer(tokenizer), frozenset())
        self._vocabulary = vocabulary

    @property
    def width(self) -> int:
        return self._vocabulary

    @property
    def embedding_rows(self) -> int:
        return self._vocabulary


class Drafter(LoadedModel):
    """A model of the native engine on `threads` threads of the OpenMP library that vLLM computes with."""

    threads: int | None = None  # None: as many as torch has

    def backend(self, rows: int) -> Backend:
        assert self.native is not None
        return Session(self.native, rows, pool=own_pool(self.threads))


def own_pool(threads: int | None = None) -> Any:
    """Threads for drafting: those of the process's OpenMP, as nothing else computes on a CPU meanwhile."""
    return extension().Pool(threads or torch.get_num_threads(), team())


def pair_of(vllm_config: Any, settings: Settings) -> Pair:
    """The target of this configuration with the drafter of the settings, whose drafts are greedy. UserError for a
    drafter that cannot be loaded, or that does not go with the target."""
    model = vllm_config.model_config
    target = Target(model.tokenizer, model.get_vocab_size())
    if settings.drafter == LOOKUP:
        return Pair.of(target, LOOKUP, settings.uag, Sampling(), verifies=False)
    drafter = Drafter.load(settings.drafter, runtime="native", cache=settings.cache)
    assert isinstance(drafter, Drafter)
    drafter.threads = settings.threads
    try:
        pair = Pair.of(target, drafter, settings.uag, Sampling(), verifies=False)
    except UserError as error:
        raise UserError(f"drafter {settings.drafter} beside {model.model}: {as_in_json(str(error))}") from None
    if pair.route == "same" and drafter.width < target.width:  # certain drafts need no distribution over its tokens
        pair = replace(pair, vocabulary=None)
    pair = pair.reading(settings.drafter_window, settings.drafter_sinks)
    return pair.with_lookup() if settings.lookup else pair


def _absent() -> NoReturn:
    raise AssertionError("nothing asks vLLM's target for its weights")
